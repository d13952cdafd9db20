"""YOLO11's training: Ultralytics' own trainer and graph, with our blocks, our data and our validation."""

import os

os.environ.setdefault("YOLO_OFFLINE", "1")
os.environ.setdefault("YOLO_AUTOINSTALL", "0")
os.environ.setdefault("YOLO_CONFIG_DIR", os.path.join(os.environ.get("TMPDIR", "/tmp"), "ultralytics"))
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))  # Ultralytics would set it to 1

import PIL.Image  # noqa: E402
import torch  # noqa: E402
from torch.optim.swa_utils import update_bn  # noqa: E402
from tqdm import tqdm  # noqa: E402

open_image = PIL.Image.open
from ultralytics.engine.trainer import BaseTrainer  # noqa: E402
from ultralytics.models.yolo.detect import DetectionTrainer  # noqa: E402
from ultralytics.nn.modules import SPPF  # noqa: E402
from ultralytics.nn.tasks import DetectionModel, load_checkpoint  # noqa: E402

from midog.engine.boxes import merge_near  # noqa: E402
from midog.engine.detector import NetworkDetector, find_candidates  # noqa: E402
from midog.models.yolo11 import ATTENTION_BLOCK, OUTPUT_BLOCKS, YOLO11  # noqa: E402
from resources.train.augment import jitter_contrast, jitter_stain  # noqa: E402
from resources.train.field_curve import MATCH_UM, precision_recall  # noqa: E402
from resources.train.tiles import EpochSampler, collate  # noqa: E402

PIL.Image.open = open_image  # Ultralytics' own asks for one more package whenever an image is broken

VALIDATION_CONFIDENCE = 0.05
RECALIBRATION_TILES = 512


class TrainableYOLO11(DetectionModel):
    """Ultralytics' stock graph with the improved blocks of `midog.models.yolo11` in their places.

    Args:
        options: of `midog.models.yolo11.YOLO11`.
    """

    def __init__(self, options):
        super().__init__(f"yolo11{options['scale']}.yaml", nc=1, verbose=False)
        ours = YOLO11(**options)
        # With one LSConv block the other two differ from the stock ones as well, see `YOLO11`.
        replaced = OUTPUT_BLOCKS if options.get("lsconv") or options.get("ema") else ()
        for number in (*replaced, *([ATTENTION_BLOCK] if options.get("ema") else [])):
            block, stock = ours.model[number], self.model[number]
            block.i, block.f, block.type, block.np = stock.i, stock.f, type(block).__name__, 0
            self.model[number] = block
        for module in self.modules():
            if isinstance(module, SPPF):
                module.cv1.act = ours.model[9].cv1.act
        self.options, self.half_precision = options, False

    def loss(self, batch, preds=None):
        """The graph in bfloat16 if `half_precision` is set; the loss in float32, because box corners need it."""
        images = batch["img"]
        if preds is None:
            # Ultralytics' own autocast is for CUDA alone.
            with torch.autocast(images.device.type, torch.bfloat16, enabled=self.half_precision):
                preds = self.forward(images)
        if getattr(self, "criterion", None) is None:
            self.criterion = self.init_criterion()
        wide = {"boxes": preds["boxes"].float(), "scores": preds["scores"].float(), "feats": preds["feats"]}
        return self.criterion(wide, batch)


def recalibrate(model, dataset, batch_size, preprocess):
    """Measure batch norm's statistics anew for averaged weights, in place.

    The running statistics belong to the weights of each step, not to their average. On the weights of one epoch this
    raised average precision from .24 to .45 on MITOS-ATYPIA case 07 and from .17 to .31 on ICPR 2012 slide 00.

    Args:
        model: `TrainableYOLO11`.
        dataset: `TileDataset`, of which the first tiles are used.
        batch_size: tiles a forward, as in training.
        preprocess: a batch of `collate` -> the same with normalised images.
    """
    starts = range(0, min(RECALIBRATION_TILES, len(dataset)), batch_size)
    batches = (preprocess(collate([dataset[start + i] for i in range(batch_size)]))["img"] for start in starts)
    update_bn(batches, model)


def inference_network(model):
    """The same weights in the plain network that inference runs."""
    network = YOLO11(**model.options)
    network.load_state_dict({key: value.float() for key, value in model.state_dict().items()})
    return network.to(next(model.parameters()).device)


class FieldValidator:
    """Average precision and best F1 on whole fields, matched at 7.5 um; stands in Ultralytics' place."""

    def __init__(self, fields, settings, args):
        self.fields, self.settings, self.args = fields, settings, args
        self.metrics = self

    keys = ["validation/average_precision", "validation/f1", "validation/threshold"]

    def __call__(self, trainer):
        recalibrate(trainer.ema.ema, trainer.dataset, min(trainer.batch_size, 64), trainer.preprocess_batch)
        network = inference_network(trainer.ema.ema)
        bar = tqdm(self.fields, "validation", leave=False, disable=None)
        found = [detect_field(network, field, self.settings) for field in bar]
        curve = precision_recall(self.fields, found)
        return {f"validation/{name}": value for name, value in curve.items()} | {"fitness": curve["average_precision"]}


def detect_field(network, field, settings):
    """Merged candidates of a field: boxes (K, 4), scores (K,)."""
    device = next(network.parameters()).device
    detector = NetworkDetector(network, VALIDATION_CONFIDENCE, settings.nms_iou)
    boxes, scores = find_candidates(field, detector, settings.tile, settings.overlap, device)
    kept = merge_near(boxes, scores, MATCH_UM / field.um_per_px[0])
    return boxes[kept], scores[kept]


class YOLO11Trainer(DetectionTrainer):
    """Ultralytics' trainer on tiles that are drawn as it goes.

    Args:
        plan: `resources.train.common.Plan` of a YOLO11.
        dataset: `TileDataset`.
        validation: list of `Field`.
        overrides: Ultralytics' settings.
    """

    def __init__(self, plan, dataset, validation, overrides):
        self.plan, self.dataset, self.validation = plan, dataset, validation
        super().__init__(overrides=overrides)
        self.add_callback("on_train_epoch_start", lambda trainer: trainer.train_loader.sampler.set_epoch(trainer.epoch))
        # Ultralytics' own output is switched off: a bar an epoch, and much that is not about this training.
        self.add_callback("on_train_start", YOLO11Trainer.start_bar)
        self.add_callback("on_train_batch_end", lambda trainer: trainer.bar.update())
        self.add_callback("on_fit_epoch_end", YOLO11Trainer.report)
        self.add_callback("on_train_end", lambda trainer: trainer.bar.close())

    def start_bar(self):
        steps = len(self.train_loader)
        done = self.start_epoch * steps
        self.bar = tqdm(desc="stage 1", initial=done, total=self.epochs * steps, unit="step", disable=None)

    def report(self):
        """The epoch's figures beside the bar, or as a line where there is no terminal."""
        figures = {name: float(value) for name, value in self.tloss.items()} | self.metrics
        self.bar.set_postfix(figures)
        if self.bar.disable:
            said = ", ".join(f"{name.removeprefix('validation/')} {value:.4g}" for name, value in figures.items())
            print(f"epoch {self.epoch + 1}, {said}", flush=True)

    def get_dataset(self):
        return {"train": "tiles", "val": "fields", "nc": 1, "names": {0: "mitotic figure"}, "channels": 3}

    def get_model(self, cfg=None, weights=None, verbose=True):
        model = TrainableYOLO11(self.plan.system.detector.options)
        if weights is not None:
            model.load_state_dict(weights.float().state_dict())
        model.half_precision = self.plan.training.half_precision
        return model.to(memory_format=torch.channels_last)

    def get_dataloader(self, dataset_path, batch_size=16, rank=0, mode="train"):
        if mode == "val":
            return torch.utils.data.DataLoader(self.validation, collate_fn=list)
        return torch.utils.data.DataLoader(
            self.dataset,
            batch_size,
            sampler=EpochSampler(self.dataset),
            num_workers=self.args.workers,
            collate_fn=collate,
            drop_last=True,
        )

    def _setup_train(self):
        super()._setup_train()
        most = self.plan.training.weight_average
        if most:
            self.ema.decay = lambda step: min(most, step / (step + 9))  # the first weights are noise: forget them soon

    def _build_train_pipeline(self):
        BaseTrainer._build_train_pipeline(self)  # without DetectionTrainer's look at label files

    def preprocess_batch(self, batch):
        how = self.plan.training.augmentation
        for key in ("img", "cls", "bboxes", "batch_idx"):
            batch[key] = batch[key].to(self.device, non_blocking=True)
        images = batch["img"].float() / 255
        images = jitter_stain(images, how.stain) if how.stain else images
        images = jitter_contrast(images, how.contrast) if how.contrast else images
        batch["img"] = images.contiguous(memory_format=torch.channels_last)
        return batch

    def get_validator(self):
        return FieldValidator(self.validation, self.plan.system.detector, self.args)

    def save_model(self):
        """As Ultralytics does, but whole or not at all: a kill while a file is written must not cost the run."""
        last, best = self.last, self.best
        self.last, self.best = self.wdir / "last.part", self.wdir / "best.part"
        try:
            super().save_model()
            for part, path in ((self.best, best), (self.last, last)):
                if part.exists():
                    part.replace(path)
        finally:
            self.last, self.best = last, best
        return True

    def final_eval(self):
        """Nothing: the export validates the best weights, and Ultralytics' own would rewrite the checkpoints."""

    def is_over(self):
        """Whether the checkpoint to resume from is of the last epoch: killed between that and the export."""
        return bool(self.resume) and load_checkpoint(self.last)[1]["epoch"] + 1 >= self.epochs

    def plot_training_labels(self):
        """Nothing: tiles are drawn as the training goes."""

    def plot_training_samples(self, batch, ni):
        """Nothing, see above."""

    def best_network(self):
        """The plain network with the best validation's weights."""
        model, _ = load_checkpoint(self.best)
        return inference_network(model.float())
