"""FoCasNet's detector and its loss against published numbers, timm's ResNet and hand-made cases."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from midog.engine.detector import NetworkDetector
from midog.engine.torch_engine import TorchNetwork
from midog.evaluation.metrics import match
from midog.models.attention import CBAM
from midog.models.focasnet import (
    FPN,
    FoCasNet,
    Head,
    ResNet,
    StandardisedConv2d,
    anchors_at,
    decode_deltas,
    decode_distances,
    grid_points,
)
from resources.train.kit.focasnet_loss import (
    anchor_free_loss,
    assign_anchors,
    assign_cores,
    encode_deltas,
    focal_loss,
    focasnet_loss,
    iou,
    iou_loss,
    on_best_level,
)

SMALL = {"backbone": 18, "levels": 2, "width": 32, "depth": 1}
NO_TRUTH = torch.zeros(0, 4)


@pytest.fixture(autouse=True)
def _same_draws_every_time():
    torch.manual_seed(0)


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float32).view(-1, 4)


def images(*numbers):
    return torch.tensor(numbers, dtype=torch.int64)


def test_number_of_parameters_of_the_parts_that_the_published_code_has_too():
    with torch.device("meta"):
        assert parameters(FPN((512, 1024, 2048), 256, 5)) == 7_997_440
        head = Head(256, 4, hybrid=True)
        assert parameters(head) - parameters(head.anchor_class) - parameters(head.anchor_box) == 4_732_165
        without, attention = (parameters(ResNet(50, 4, cbam, group_norm=True)) for cbam in (False, True))
        assert attention - without == 2_516_512
        assert parameters(ResNet("resnext50", 4, cbam=False, group_norm=True)) == 22_979_904
        assert parameters(Head(256, 4, hybrid=True, anchor_based=False)) == 4_732_165


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 38_857_874),
        ({"group_norm": False}, 38_857_874),
        ({"cbam": False}, 36_341_362),
        ({"cbam": False, "group_norm": False, "hybrid": False}, 36_329_837),
        ({"backbone": "resnext50", "anchor_based": False}, 38_226_021),  # the published code's
        ({"backbone": 18, "levels": 3, "width": 96, "depth": 2}, 11_975_170),
        ({"backbone": 18, "levels": 2, "width": 96, "depth": 2}, 3_383_422),
    ],
)
def test_number_of_parameters(options, expected):
    with torch.device("meta"):
        assert parameters(FoCasNet(**options)) == expected


def test_options_that_cannot_be_built():
    with pytest.raises(ValueError, match="18, 50, resnext50"):
        FoCasNet(backbone=34)
    with pytest.raises(ValueError, match="no branch"):
        FoCasNet(18, hybrid=False, anchor_based=False)
    with pytest.raises(ValueError, match="at least one level"):
        FoCasNet(18, levels=0)


def cbam_by_its_definition(block, x):
    """Woo et al., equations 1 to 3, one value at a time."""
    first, second = block.channel[0].weight[:, :, 0, 0].numpy(), block.channel[2].weight[:, :, 0, 0].numpy()
    kernel, x = block.spatial.weight[0].numpy(), x.numpy()
    gates = sum(second @ np.maximum(first @ pooled, 0) for pooled in (x.mean((1, 2)), x.max((1, 2))))
    x = x / (1 + np.exp(-gates))[:, None, None]
    pooled = np.pad(np.stack([x.mean(0), x.max(0)]), ((0, 0), (3, 3), (3, 3)))
    rows, columns = x.shape[1:]
    gate = [[(pooled[:, i : i + 7, j : j + 7] * kernel).sum() for j in range(columns)] for i in range(rows)]
    return x / (1 + np.exp(-np.array(gate)))


@torch.no_grad()
def test_cbam_by_its_definition():
    block, x = CBAM(32).double(), torch.randn(2, 32, 5, 4, dtype=torch.float64)
    for got, image in zip(block(x), x, strict=True):
        np.testing.assert_allclose(got.numpy(), cbam_by_its_definition(block, image), rtol=1e-12)


def test_gradients_of_the_blocks():
    x = torch.randn(2, 16, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(CBAM(16).double(), x)
    convolution = StandardisedConv2d(16, 2, 3).double()
    weight = convolution.weight
    assert torch.autograd.gradcheck(lambda x, _: convolution(x), (x, weight))


def test_standardised_filters_by_hand():
    convolution = StandardisedConv2d(1, 2, (1, 3), bias=False)
    convolution.weight.data = torch.tensor([[1.0, 2.0, 3.0], [-20.0, 0.0, 20.0]]).view(2, 1, 1, 3)
    x = torch.tensor([0.0, 5.0, 7.0]).view(1, 1, 1, 3)  # both filters become -1, 0, 1: unbiased deviations 1 and 20
    torch.testing.assert_close(convolution(x).flatten(), torch.tensor([7.0, 7.0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("backbone", [18, 50, "resnext50"])
@pytest.mark.parametrize("group_norm", [False, True])
@torch.no_grad()
def test_the_same_maps_as_timms(backbone, group_norm):
    from timm.models import resnet

    block, layers = (resnet.BasicBlock, (2, 2, 2, 2)) if backbone == 18 else (resnet.Bottleneck, (3, 4, 6, 3))
    groups = {"cardinality": 32, "base_width": 4} if backbone == "resnext50" else {}
    options = groups | {"norm_layer": "groupnorm" if group_norm else "batchnorm2d", "zero_init_last": False}
    theirs = resnet.ResNet(block, layers, num_classes=0, **options).double().eval()
    for name, parameter in theirs.named_parameters():
        if ".bn" in name or "downsample.1" in name:
            nn.init.normal_(parameter, 0.5, 0.2)
    ours = ResNet(backbone, 4, cbam=False, group_norm=group_norm).double().eval()
    ours.load_state_dict(theirs.state_dict())
    if group_norm:
        for module in theirs.modules():
            if isinstance(module, nn.Conv2d):
                filters = module.weight.flatten(1)
                filters = (filters - filters.mean(1, keepdim=True)) / (filters.std(1, keepdim=True) + 1e-5)
                module.weight.copy_(filters.view_as(module.weight))
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    _, expected = theirs.forward_intermediates(x, indices=[2, 3, 4])
    for got, wanted in zip(ours(x), expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-9, rtol=1e-9)
        assert got.std() > 1e-3


@pytest.mark.parametrize(("levels", "hybrid"), [(1, True), (2, False), (5, True)])
@torch.no_grad()
def test_shapes(levels, hybrid):
    network = FoCasNet(**SMALL | {"levels": levels}, hybrid=hybrid).eval()
    for height, width in ((64, 64), (32, 96)):
        places = sum(math.ceil(height / 8 / 2**i) * math.ceil(width / 8 / 2**i) for i in range(levels))
        outputs = places * (10 if hybrid else 9)
        with torch.autocast("cpu", torch.bfloat16, enabled=height == width):
            found, logits = network(torch.rand(2, 3, height, width))
        assert found.shape == (2, 4, outputs)
        assert logits.shape == (2, 1, outputs)
        assert found.dtype == logits.dtype == torch.float32


def test_the_anchor_free_branch_alone_is_that_of_the_hybrid():
    """The same boxes and scores from the same weights, and a gradient for each of them."""
    hybrid, alone = FoCasNet(**SMALL).eval(), FoCasNet(**SMALL, anchor_based=False).eval()
    state = {name: value for name, value in hybrid.state_dict().items() if "anchor_" not in name}
    alone.load_state_dict(state)
    tiles = torch.rand(2, 3, 64, 96)
    (found, logits), (of_both, logits_of_both) = alone(tiles), hybrid(tiles)
    places = found.shape[2]
    assert places == 8 * 12 + 4 * 6
    torch.testing.assert_close(found, of_both[:, :, -places:])
    torch.testing.assert_close(logits, logits_of_both[:, :, -places:])
    based, free = alone.branches(tiles)
    assert based is None
    sum(anchor_free_loss(free, boxes([20, 20, 60, 60]), images(1))).backward()
    assert [name for name, each in alone.named_parameters() if each.grad is None or not each.grad.any()] == []


def test_untrained_it_finds_nothing():
    network = TorchNetwork(FoCasNet(**SMALL), torch.device("cpu"), "float32")
    found, scores = NetworkDetector(network, 0.1, 0.5)(np.random.default_rng(0).random((1, 3, 64, 64), np.float32))[0]
    assert found.shape == (0, 4)
    assert len(scores) == 0


def test_input_is_normalised_inside():
    network = FoCasNet(**SMALL)
    tile = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    seen = []
    network.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(tile)
    network(tile + torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))
    torch.testing.assert_close(seen[0], torch.zeros(1, 3, 64, 64), atol=1e-6, rtol=0)
    torch.testing.assert_close(seen[1], torch.ones(1, 3, 64, 64), atol=1e-6, rtol=0)


@torch.no_grad()
def test_a_place_looks_at_its_point():
    network = ResNet(18, 3, cbam=False, group_norm=True).double()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight += module.weight.flip(2, 3)
    tile = torch.rand(1, 3, 129, 129, dtype=torch.float64)  # turned by half a turn, pixel i becomes 128 - i
    for stride, got, turned in zip((8, 16), network(tile), network(tile.flip(2, 3)), strict=True):
        torch.testing.assert_close(turned.flip(2, 3), got)
        points = grid_points(*got.shape[2:], stride, "cpu")
        torch.testing.assert_close(128 - points.flip(0), points)


def test_anchors_by_hand():
    points = grid_points(2, 3, 16, "cpu")
    assert points.tolist() == [[0, 0], [16, 0], [32, 0], [0, 16], [16, 16], [32, 16]]
    anchors = anchors_at(points, 16)
    assert anchors.shape == (54, 4)
    square = anchors[9 * 4 + 3]  # at (16, 16), ratio 1, the smallest: 3 strides
    torch.testing.assert_close(square, torch.tensor([-8.0, -8, 40, 40]))
    sides = anchors[:9, 2:] - anchors[:9, :2]
    torch.testing.assert_close(sides.prod(1).sqrt(), 48 * torch.tensor([1, 2 ** (1 / 3), 2 ** (2 / 3)]).repeat(3))
    torch.testing.assert_close(sides[:, 1] / sides[:, 0], torch.tensor([0.5, 1, 2]).repeat_interleave(3))
    torch.testing.assert_close(anchors.view(6, 9, 2, 2).mean(2), points[:, None].expand(6, 9, 2))


def test_the_anchors_of_two_levels_fit_every_figure():
    anchors = torch.cat(
        [anchors_at(grid_points(256 // stride, 256 // stride, stride, "cpu"), stride) for stride in (8, 16)]
    )
    for side in range(20, 71, 2):
        for x, y in torch.randint(80, 160, (20, 2)).tolist():
            assert iou(boxes([x, y, x + side, y + side])[:, None], anchors).max() >= 0.5


def test_decoding_by_hand():
    anchor = torch.tensor([10.0, 20, 30, 60])  # 20 x 40 at (20, 40)
    deltas = torch.tensor([0.5, -0.25, math.log(2), math.log(0.5)])
    torch.testing.assert_close(decode_deltas(deltas, anchor), torch.tensor([10.0, 20, 50, 40]))  # 40 x 20 at (30, 30)
    assert decode_deltas(torch.full((4,), 1e6), anchor).isfinite().all()

    distances = torch.tensor([[0.25, 0.5, 1, 2], [0.25, 0.5, 1, 2], [-3, 0, 0.25, 1]])
    points, levels = torch.tensor([[100.0, 200], [100, 200], [0, 0]]), images(0, 2, 1)
    got = decode_distances(distances, points, levels)
    torch.testing.assert_close(got[0], torch.tensor([92.0, 184, 132, 264]))
    torch.testing.assert_close(got[1], torch.tensor([68.0, 136, 228, 456]))
    torch.testing.assert_close(got[2], torch.tensor([-0.0064, -0.0064, 16, 64]))


coordinates = st.floats(0, 200, width=32)
sides = st.floats(4, 200, width=32)
some_box = st.tuples(coordinates, coordinates, sides, sides).map(
    lambda b: boxes([b[0], b[1], b[0] + b[2], b[1] + b[3]])
)


@given(some_box, some_box)
@settings(max_examples=100, deadline=None)
def test_decoding_inverts_encoding(box, anchor):
    torch.testing.assert_close(decode_deltas(encode_deltas(box, anchor), anchor), box, atol=1e-2, rtol=1e-4)


def test_iou_by_hand():
    first, second = (
        boxes([0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [5, 5, 5, 5]),
        boxes([0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10], [5, 5, 5, 5]),
    )
    torch.testing.assert_close(iou(first, second), torch.tensor([1, 1 / 3, 0, 0]))
    expected = torch.tensor([0, math.log(3), -math.log(1e-6), -math.log(1e-6)])
    torch.testing.assert_close(iou_loss(first, second), expected)


def test_gradients_of_the_box_loss():
    truths = boxes([0, 0, 10, 12], [20, 20, 50, 60]).double()
    found = (truths + torch.tensor([[1.5, -2, 3, 1], [4, 3, -5, -6]])).requires_grad_()
    assert torch.autograd.gradcheck(lambda found: iou_loss(found, truths), found)


def test_focal_loss_by_hand():
    got = focal_loss(torch.tensor([0.0, 0.0, math.log(9)]), torch.tensor([1.0, 0, 0]))
    expected = torch.tensor([0.25 * 0.25 * math.log(2), 0.75 * 0.25 * math.log(2), 0.75 * 0.81 * math.log(10)])
    torch.testing.assert_close(got, expected)


def test_anchors_answer_for_truths():
    anchors = boxes([0, 0, 10, 10], [0, 0, 10, 20], [0, 0, 10, 22], [0, 0, 10, 30], [100, 0, 110, 10])
    truth, anchor, counted = assign_anchors(anchors, boxes([0, 0, 10, 10]), images(1), 2)
    assert list(zip(truth.tolist(), anchor.tolist(), strict=True)) == [(0, 0), (0, 1)]  # IoU 1 and .5
    assert counted.tolist() == [[True] * 5, [True, True, False, True, True]]  # IoU 1, .5, .45, .33, 0


def test_a_truth_that_fits_no_anchor_keeps_its_best():
    anchors = boxes([0, 0, 10, 10], [0, 0, 40, 40], [200, 0, 210, 10])
    truth, anchor, counted = assign_anchors(anchors, boxes([0, 0, 2, 2]), images(0), 1)  # IoU .04 and .0025
    assert (truth.tolist(), anchor.tolist()) == ([0], [0])
    assert counted.all()
    nowhere = boxes([500, 500, 510, 510], [5, 5, 5, 5])  # outside, empty
    assert len(assign_anchors(anchors, nowhere, images(0, 0), 1)[0]) == 0


def test_an_anchor_answers_for_the_truth_it_overlaps_most():
    anchors = boxes([0, 0, 10, 10], [0, 0, 10, 9])
    truths = boxes([0, 0, 10, 10], [0, 0, 10, 8])  # IoU 1 and .9; .8 and .89
    truth, anchor, _ = assign_anchors(anchors, truths, images(0, 0), 1)
    assert list(zip(truth.tolist(), anchor.tolist(), strict=True)) == [(0, 0), (1, 1)]

    only = boxes([0, 0, 10, 10])
    truth, anchor, _ = assign_anchors(only, truths, images(0, 0), 1)  # nearest to both: the better one has it
    assert list(zip(truth.tolist(), anchor.tolist(), strict=True)) == [(0, 0)]

    twins = boxes([0, 0, 10, 9], [0, 0, 10, 9])
    truth, anchor, _ = assign_anchors(anchors, twins, images(0, 0), 1)
    assert list(zip(truth.tolist(), anchor.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    truth, anchor, _ = assign_anchors(anchors, twins, images(0, 1), 2)  # the same place of two images
    assert truth.bincount().tolist() == [2, 2]


def test_without_truths_all_is_background():
    anchors = anchors_at(grid_points(4, 4, 8, "cpu"), 8)
    truth, anchor, counted = assign_anchors(anchors, NO_TRUTH, images(), 3)
    assert len(truth) == len(anchor) == 0
    assert counted.shape == (3, 144)
    assert counted.all()
    truth, place, background = assign_cores(grid_points(4, 4, 8, "cpu"), torch.zeros(16).long(), NO_TRUTH, images(), 3)
    assert len(truth) == len(place) == 0
    assert background.shape == (3, 16)
    assert background.all()
    assert on_best_level(truth, place, torch.zeros(0)).shape == (0,)


def two_levels(side):
    points = [grid_points(side // stride, side // stride, stride, "cpu") for stride in (8, 16)]
    return torch.cat(points), torch.tensor([0] * len(points[0]) + [1] * len(points[1]))


def test_cores_by_hand():
    points, levels = two_levels(64)  # 8 x 8 places, then 4 x 4
    truth, place, background = assign_cores(points, levels, boxes([4, 4, 44, 44]), images(0), 1)
    # The core is 20 to 28: of stride 8 the cell at 24 is in it, those at 16 (12 to 20) and 32 (28 to 36) only touch it.
    assert points[place].tolist() == [[24, 24], [16, 16], [32, 16], [16, 32], [32, 32]]
    assert levels[place].tolist() == [0, 1, 1, 1, 1]
    assert truth.tolist() == [0] * 5
    assert (~background[0]).nonzero().flatten().tolist() == place.tolist()


def test_a_cell_must_be_centred_in_the_truth_and_hold_a_hundredth_of_core():
    points, levels = torch.tensor([[64.0, 64]]), images(4)  # stride 128: from 0 to 128
    for truth, expected in (([0, 0, 70, 70], 1), ([24, 24, 84, 84], 0), ([0, 0, 63, 128], 0)):
        # cores of 14 x 14 (1.2 % of the cell), 12 x 12 (.9 %), and a large one of a truth that ends left of the centre
        assert len(assign_cores(points, levels, boxes(truth), images(0), 1)[0]) == expected


def test_where_cores_meet_is_neither():
    points, levels = two_levels(64)
    truths = boxes([4, 4, 44, 44], [12, 4, 52, 44])  # cores 20 to 28 and 28 to 36; cells at 32 of stride 16 hold both
    truth, place, background = assign_cores(points, levels, truths, images(0, 0), 1)
    pairs = [(t, *points[p].tolist(), levels[p]) for t, p in zip(truth.tolist(), place, strict=True)]
    assert pairs == [(0, 24, 24, 0), (0, 16, 16, 1), (0, 16, 32, 1), (1, 32, 24, 0)]
    assert (~background).sum() == 6
    assert len(assign_cores(points, levels, truths, images(0, 1), 2)[0]) == 5 + 3  # two images do not meet

    twins = boxes([4, 4, 44, 44], [4, 4, 44, 44])
    truth, place, background = assign_cores(points, levels, twins, images(0, 0), 1)
    assert len(truth) == 0
    assert (~background).sum() == 5


def test_the_level_with_the_lowest_mean_loss_is_chosen():
    truth, level = images(0, 0, 0, 0, 1, 1, 3), images(0, 0, 0, 1, 0, 2, 2)
    loss = torch.tensor([0.1, 0.2, 0.9, 0.5, 7.0, 6.0, 100.0])  # truth 0: means .4 and .5, although its sum is larger
    assert on_best_level(truth, level, loss).tolist() == [True, True, True, False, False, True, True]


def right_distances(branch, truth):
    return (branch.points.repeat(1, 2) - truth).abs() / (32 * 2**branch.levels)[:, None]


def test_levels_that_were_not_chosen_cost_nothing():
    network = FoCasNet(**SMALL).eval()
    branch = network.branches(torch.rand(1, 3, 64, 64))[1]
    truth, image = boxes([4, 4, 44, 44]), images(0)
    branch = branch._replace(distances=right_distances(branch, truth)[None])
    for good, bad in ((0, 1), (1, 0)):
        logits = torch.where(branch.levels == good, 3.0, -3.0)[None].requires_grad_()
        anchor_free_loss(branch._replace(logits=logits), truth, image)[0].backward()
        _, place, _ = assign_cores(branch.points, branch.levels, truth, image, 1)
        on_good, on_bad = place[branch.levels[place] == good], place[branch.levels[place] == bad]
        assert (logits.grad[0, on_good] < 0).all()
        assert (logits.grad[0, on_bad] == 0).all()
        elsewhere = torch.ones(len(branch.points), dtype=torch.bool).index_fill_(0, place, False)
        assert (logits.grad[0, elsewhere] > 0).all()


def test_the_loss_is_small_where_the_outputs_are_right():
    network = FoCasNet(**SMALL).eval()
    based, free = network.branches(torch.rand(2, 3, 64, 64))
    truths = boxes([4, 4, 44, 44])
    truth, anchor, _ = assign_anchors(based.anchors, truths, images(1), 2)
    logits, deltas = torch.full_like(based.logits, -20), torch.zeros_like(based.deltas)
    logits[1, anchor], deltas[1, anchor] = 20, encode_deltas(truths[truth], based.anchors[anchor])
    _, place, _ = assign_cores(free.points, free.levels, truths, images(1), 2)
    free_logits, distances = torch.full_like(free.logits, -20), torch.zeros_like(free.distances)
    free_logits[1, place], distances[1, place] = 20, right_distances(free, truths)[place]
    right = based._replace(logits=logits, deltas=deltas), free._replace(logits=free_logits, distances=distances)
    loss, parts = focasnet_loss(right, [NO_TRUTH, truths])
    assert loss < 1e-5
    assert set(parts) == {"anchor_class", "anchor_box", "free_class", "free_box"}
    assert focasnet_loss(right, [truths, NO_TRUTH])[0] > 10


@pytest.mark.parametrize("hybrid", [False, True])
def test_the_loss_of_a_batch(hybrid):
    network = FoCasNet(**SMALL, hybrid=hybrid)
    outputs = network.branches(torch.rand(2, 3, 64, 64))
    loss, parts = focasnet_loss(outputs, [boxes([4, 4, 44, 44]), NO_TRUTH])
    assert len(parts) == (4 if hybrid else 2)
    torch.testing.assert_close(loss.detach(), sum(parts.values()))
    twice = tuple(
        branch and type(branch)(*(torch.cat([each, each]) for each in branch[:2]), *branch[2:]) for branch in outputs
    )
    torch.testing.assert_close(focasnet_loss(twice, [boxes([4, 4, 44, 44]), NO_TRUTH] * 2)[0], loss)
    with pytest.raises(ValueError, match="truths of 1 images for outputs of 2"):
        focasnet_loss(outputs, [NO_TRUTH])


def test_without_any_truth_the_loss_is_background_only():
    network = FoCasNet(**SMALL)
    loss, parts = focasnet_loss(network.branches(torch.rand(2, 3, 64, 64)), [NO_TRUTH, NO_TRUTH])
    assert parts["anchor_box"] == parts["free_box"] == 0
    assert parts["anchor_class"] > 0
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("levels", [2, 5])
@pytest.mark.parametrize("options", [{}, {"group_norm": False, "cbam": False}])
def test_gradients_reach_every_parameter(levels, options):
    network = FoCasNet(**SMALL | {"levels": levels}, **options)
    truths = boxes([20, 20, 70, 70], [100, 30, 250, 180])
    focasnet_loss(network.branches(torch.rand(2, 3, 256, 256)), [truths, NO_TRUTH])[0].backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def discs(count, generator):
    """Tiles with one to three dark discs on pink: float32 (count, 3, 128, 128), their boxes."""
    y, x = np.mgrid[:128, :128]
    tiles, truths = np.full((count, 3, 128, 128), 0.8, np.float32), []
    tiles[:, 1] -= 0.2
    for tile in tiles:
        places = generator.permutation([(32, 32), (32, 96), (96, 32), (96, 96)])[: generator.integers(1, 4)]
        rows = []
        for place in places + generator.integers(-6, 7, places.shape):
            radius = generator.integers(12, 24)
            tile[:, np.hypot(x - place[0], y - place[1]) < radius] = 0.2
            rows.append([*(place - radius), *(place + radius)])
        truths.append(boxes(*rows))
    return torch.from_numpy(tiles + generator.normal(0, 0.03, tiles.shape).astype(np.float32)), truths


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    tiles, truths = discs(3, np.random.default_rng(0))
    network = FoCasNet(**SMALL)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for _ in range(30):
        loss, _ = focasnet_loss(network.branches(tiles), truths)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 10)
        optimizer.step()
    return network, tiles, truths


@torch.no_grad()
@pytest.mark.parametrize("branch", ["both", "anchor_based", "anchor_free"])
def test_it_learns_discs_by_heart(branch, trained):
    network, tiles, truths = trained
    network = copy.deepcopy(network)
    if branch == "anchor_based":
        network.head.hybrid = False
    detector = NetworkDetector(TorchNetwork(network, torch.device("cpu"), "float32"), 0.5, 0.3)
    if branch == "anchor_free":
        nn.init.constant_(network.head.anchor_class.bias, -100)
    for (found, _), truth in zip(detector(tiles.numpy()), truths, strict=True):
        centres = truth.view(-1, 2, 2).mean(1), found.reshape(-1, 2, 2).mean(1)
        assert len(found) == len(truth)
        taken = match(*centres, radius=5)
        assert (taken >= 0).all()
        assert iou(truth, torch.from_numpy(found[taken])).min() > 0.7
