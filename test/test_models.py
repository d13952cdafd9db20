import pytest
import torch

from midog.models.classifiers import Block, ConvNeXtV2, GlobalResponseNorm, timm_network


def randomise(network):
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.2
    return network


def test_base_has_the_published_number_of_parameters():
    with torch.device("meta"):
        network = ConvNeXtV2((128, 256, 512, 1024), (3, 3, 27, 3), "patch")
    assert sum(parameter.numel() for parameter in network.parameters()) == 87_693_825


def test_the_same_function_as_timms():
    from timm.models.convnext import ConvNeXt

    theirs = (
        ConvNeXt(depths=(1, 1, 2, 1), dims=(8, 8, 16, 32), num_classes=3, use_grn=True, ls_init_value=None)
        .double()
        .eval()
    )
    ours = ConvNeXtV2((8, 8, 16, 32), (1, 1, 2, 1), "patch", classes=3).double().eval()
    ours.load_state_dict(randomise(theirs).state_dict())
    crops = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(ours(crops), theirs(crops), atol=1e-9, rtol=1e-9)
    assert ours(crops).std() > 1e-3


def test_global_response_norm_by_hand():
    norm = GlobalResponseNorm(2)
    x = torch.tensor([[[[3.0, 1.0], [4.0, 0.0]]]])  # channel norms 5 and 1, their mean 3
    torch.testing.assert_close(norm(x), x)  # gamma and beta start at 0
    torch.nn.init.ones_(norm.weight)
    torch.testing.assert_close(norm(x), x * (1 + torch.tensor([5 / 3, 1 / 3])))


def test_a_silent_channel_has_a_gradient():
    norm = GlobalResponseNorm(2)
    torch.nn.init.ones_(norm.weight)
    x = torch.tensor([[[[3.0, 0.0], [4.0, 0.0]]]], requires_grad=True)
    norm(x).sum().backward()
    assert x.grad.isfinite().all()


def test_gradients_of_a_block():
    block = randomise(Block(4, drop_path=0.0).double())
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, x)


def test_drop_path_skips_whole_images_in_training_only():
    block = randomise(Block(4, drop_path=0.5))
    x = torch.randn(64, 4, 5, 5)
    torch.manual_seed(0)
    skipped = (block.train()(x) == x).flatten(1).all(1)
    assert 10 < skipped.sum() < 54
    assert not (block.eval()(x) == x).flatten(1).all(1).any()


def test_stage_maps_of_the_early_stem():
    network = ConvNeXtV2((16, 32, 64), (1, 1, 1), "early")
    assert [tuple(each.shape) for each in network.stage_maps(torch.zeros(2, 3, 64, 64))] == [
        (2, 16, 16, 16),
        (2, 32, 8, 8),
        (2, 64, 4, 4),
    ]
    with pytest.raises(ValueError, match="patch, early"):
        ConvNeXtV2((16,), (1,), "none")


def test_any_network_of_timm():
    assert timm_network("resnet10t", classes=2).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 2)
