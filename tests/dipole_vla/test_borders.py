"""What comes from outside a backbone: sizes, adapters beside weights, pixels, scopes, times, torch's own settings."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import ClassVar

import pytest
import timm
import torch
from dp_vla_forms import wrapped
from safetensors.torch import load_file, save_file
from small_backbone import make_backbone, make_observation
from torch import nn

from dipole_vla.backbones import FAMILIES, load_backbone
from dipole_vla.backbones.base import Backbone
from dipole_vla.backbones.observing import IMAGE_MEAN, IMAGE_STD, normalised_pixels
from dipole_vla.backbones.pi0.model import PI0
from dipole_vla.backbones.source_files import read_weights, weights_path
from dipole_vla.backbones.timm.model import TimmConfig, TimmDriver
from dipole_vla.commands.import_ import import_checkpoint
from dipole_vla.commands.init import init
from dipole_vla.guidance import guided_denoiser
from dipole_vla.paths import CosineTable, LinearFlow, VPLinear, time_for_network
from dipole_vla.policy import ActionSpec, AdapterPair, GuidedPolicy, load_policy
from dipole_vla.solvers import SolverSpec, solve
from navsim_adapter.foundation.errors import InputError

PARITY = Path(__file__).resolve().parents[1] / "data" / "parity"
LORA = PARITY / "dp_vla" / "lora" / "positive"
SOURCES = {"xvla": PARITY / "xvla" / "native", "alpamayo": PARITY / "alpamayo" / "model"}
SOURCES |= {family: PARITY / family for family in ("dp_vla", "recogdrive", "pi05", "simwam", "smolvla")}


@pytest.fixture(params=[*SOURCES, "pi0"])
def source(request, tmp_path):
    """(family, a folder of it that can be imported)."""
    folder = tmp_path / "source"
    if request.param == "pi0":
        folder.mkdir()
        save_file({"some.weight": torch.zeros(1)}, folder / "model.safetensors")
        (folder / "config.json").write_text('{"model_type": "pi0"}')
    else:
        shutil.copytree(SOURCES[request.param], folder)
        (folder / "flow.ckpt").unlink(missing_ok=True)
    return request.param, folder


# --- adapters that would be lost -------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [".", "adapter", "checkpoints/step-100", "lora/third"])
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.bin", "pytorch_lora_weights.safetensors"])
def test_an_adapter_beside_or_below_the_weights_is_refused(source, tmp_path, name, place):
    family, folder = source
    (folder / place).mkdir(parents=True, exist_ok=True)
    (folder / place / name).write_bytes(b"{}")
    with pytest.raises(InputError, match=r"an adapter lies with the weights .*merge it into its base"):
        import_checkpoint(family, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_alone_says_so(tmp_path):
    folder = Path(shutil.copytree(LORA, tmp_path / "source"))
    for family in (*SOURCES, "pi0"):
        with pytest.raises(InputError, match=r"holds an adapter alone .*merge it into its base"):
            import_checkpoint(family, folder, tmp_path / "out")
    shutil.copy(PARITY / "xvla" / "native" / "config.json", folder)
    with pytest.raises(InputError, match="holds an adapter alone"):
        import_checkpoint("xvla", folder, tmp_path / "out")
    with pytest.raises(InputError, match="holds an adapter alone"):
        import_checkpoint("recogdrive", folder / "adapter_model.safetensors", tmp_path / "out")


@pytest.mark.parametrize("form", ["pytorch_model.bin", "model.safetensors"])
def test_an_adapter_among_the_weights_is_refused(tmp_path, form):
    folder = Path(shutil.copytree(SOURCES["xvla"], tmp_path / "source"))
    file = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for name in ("x.lora_A.default.weight", "x.lora_embedding_B.default", "x.base_layer.weight"):
        damaged = {**file, "model.transformer." + name: torch.zeros(1)}
        torch.save(damaged, folder / form) if form.endswith("bin") else save_file(damaged, folder / form)
        with pytest.raises(InputError, match=r"an adapter lies among the weights .*merge it into its base"):
            import_checkpoint("xvla", folder, tmp_path / "out")


def test_an_adapter_beside_the_model_in_one_torch_file_is_refused(tmp_path):
    adapter = {"x.lora_A.weight": torch.zeros(1)}
    torch.save({"model": {"x.weight": torch.zeros(1)}, "optimizer": {"lr": 1}, "lora": adapter}, tmp_path / "last.pt")
    with pytest.raises(InputError, match=r"beside 'model' \('lora'\)"):
        read_weights(tmp_path / "last.pt")


def test_names_that_only_look_alike_are_read(tmp_path):
    save_file({"explorative.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    for name in ("explorative.safetensors", "planner_lora_merged.ckpt", "adapter.md"):
        (tmp_path / name).write_bytes(b"")
    assert read_weights(weights_path(tmp_path)).keys() == {"explorative.weight"}


def test_dp_vlas_own_adapters_are_applied_and_no_others(tmp_path):
    folder = Path(shutil.copytree(PARITY / "dp_vla", tmp_path / "source"))
    with pytest.raises(InputError, match="lora/ beside it would be lost; pass the folder"):
        import_checkpoint("dp_vla", folder / "model.safetensors", tmp_path / "file")
    names = json.loads((PARITY / "dp_vla" / "names.json").read_text())["full_with_lora"]
    file = wrapped(names)
    save_file(file, folder / "model.safetensors")
    import_checkpoint("dp_vla", folder, tmp_path / "same")  # twice the same pair
    changed = next(name for name in file if "lora_B" in name)
    save_file({**file, changed: file[changed] + 1}, folder / "model.safetensors")
    with pytest.raises(InputError, match="not those in lora/"):
        import_checkpoint("dp_vla", folder, tmp_path / "other")


def test_an_adapter_beside_the_language_model_or_an_encoder_is_refused(tmp_path):
    vlm = Path(shutil.copytree(PARITY / "recogdrive" / "vlm", tmp_path / "vlm"))
    shutil.copy(LORA / "adapter_model.safetensors", vlm)
    with pytest.raises(InputError, match="an adapter lies with the weights"):
        import_checkpoint("recogdrive", PARITY / "recogdrive" / "ddim.ckpt", tmp_path / "out", encoder=vlm)
    save_file(timm.create_model("test_convnext").state_dict(), vlm / "encoder.safetensors")
    with pytest.raises(InputError, match="an adapter lies with the weights"):
        init("timm", tmp_path / "timm", encoder_weights=vlm / "encoder.safetensors")


# --- pixels ----------------------------------------------------------------------------------------------------


def shown(model, value):
    """What the encoder is given for pictures of one grey value."""
    seen = []
    hook = model.encoder.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    forward = model.encoder.forward_features
    model.encoder.forward_features = lambda x: seen.append(x) or forward(x)
    pixels = torch.full((1, 3, 3, *model.config.image_size), value, dtype=torch.uint8)
    model.encode({"pixels": pixels, "proprio": torch.zeros(1, 20)})
    hook.remove()
    return seen[0][0, :, 0, 0].tolist()


@pytest.mark.parametrize("encoder", ["vit_tiny_patch16_224", "test_vit", "test_convnext", "resnet10t"])
def test_a_timm_encoder_is_shown_pictures_as_it_was_trained(tmp_path, encoder):
    wanted = timm.data.resolve_model_data_config(timm.create_model(encoder))
    init("timm", tmp_path / "out", sizes={"encoder": encoder, "image_size": [64, 64]})
    model = load_backbone(tmp_path / "out")
    assert (model.config.image_mean, model.config.image_std) == (wanted["mean"], wanted["std"])
    assert model.processor().interpolation == wanted["interpolation"]
    for value in (0, 255):
        by_timm = [(value / 255 - mean) / std for mean, std in zip(wanted["mean"], wanted["std"])]
        assert shown(model, value) == pytest.approx(by_timm, abs=1e-5)


def test_a_folder_that_says_nothing_keeps_imagenets_numbers(tmp_path):
    init("timm", tmp_path / "out", sizes={"encoder": "test_vit", "image_size": [64, 64]})
    path = tmp_path / "out" / "config.json"
    raw = json.loads(path.read_text())
    for name in ("image_mean", "image_std", "interpolation"):
        del raw["config"][name]
    path.write_text(json.dumps(raw))
    black = [-mean / std for mean, std in zip(IMAGE_MEAN, IMAGE_STD)]
    assert shown(load_backbone(tmp_path / "out"), 0) == pytest.approx(black, rel=1e-6)
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (IMAGE_MEAN, IMAGE_STD))
    assert torch.equal(normalised_pixels(pixels), (pixels.float() / 255 - mean) / std)


def test_what_lies_beside_published_weights_or_is_asked_for_counts_more_than_the_name(tmp_path):
    save_file(timm.create_model("test_convnext").state_dict(), tmp_path / "model.safetensors")
    described = {"architecture": "test_convnext", "pretrained_cfg": {"mean": [0.1] * 3, "std": [0.2] * 3}}
    (tmp_path / "config.json").write_text(json.dumps(described))
    init("timm", tmp_path / "out", encoder_weights=tmp_path / "model.safetensors")
    assert load_backbone(tmp_path / "out").config.image_mean == (0.1, 0.1, 0.1)
    asked = {"image_mean": [0.3] * 3, "image_std": [0.4] * 3}
    init("timm", tmp_path / "asked", sizes=asked, encoder_weights=tmp_path / "model.safetensors")
    assert load_backbone(tmp_path / "asked").config.image_std == (0.4, 0.4, 0.4)
    with pytest.raises(InputError, match=r"config\.image_std"):
        TimmConfig.tiny(image_std=(0.0, 1.0, 1.0))
    with pytest.raises(InputError, match=r"config\.interpolation"):
        TimmConfig.tiny(interpolation="random")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("preprocessor_config.json", {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5] * 3}),
        ("processor_config.json", {"image_processor": {"do_normalize": False}}),
        ("preprocessor_config.json", {"rescale_factor": 1.0}),
    ],
)
def test_other_families_check_what_the_image_processor_says(source, tmp_path, file, content):
    family, folder = source
    (folder / "vlm" / file if family == "recogdrive" else folder / file).write_text(json.dumps(content))
    with pytest.raises(InputError, match=file.replace(".", r"\.")):
        import_checkpoint(family, folder, tmp_path / "out")


# --- sizes and families ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "sizes", "message"),
    [
        ("timm", {"encoder": "mvitv2_tiny"}, r"config\.encoder: mvitv2_tiny cannot read"),
        ("timm", {"encoder": "convnext_tinny"}, "did you mean 'convnext_tiny'"),
        ("timm", {"depht": 3}, r"sizes\.depht: unknown field \(did you mean 'depth'"),
        ("dp_vla", {"depht": 3}, r"sizes\.depht: unknown field \(did you mean 'depth'"),
        ("timm", {"depth": "3"}, r"sizes\.depth: must be int"),
        ("timm", {"heads": 5}, r"config\.heads: must divide"),
        ("dp_vla", {"heads": 0}, r"config\.heads: must divide"),
        ("pi0", {"vision_width": 33}, "sizes: no pi0 can have these"),
    ],
)
def test_sizes_that_cannot_be_are_one_line(tmp_path, family, sizes, message):
    with pytest.raises(InputError, match=message):
        init(family, tmp_path / "out", sizes=sizes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "entry", [("dipole_vla.backbones.my_vlaa", "MyVLA"), ("dipole_vla.backbones.pi0.model", "PI1")]
)
def test_a_family_whose_module_or_class_is_not_there_is_named(tmp_path, monkeypatch, entry):
    monkeypatch.setitem(FAMILIES, "my_vla", entry)
    with pytest.raises(InputError, match=r"FAMILIES\['my_vla'\]: .* cannot be imported"):
        init("my_vla", tmp_path / "out")


# --- the action ------------------------------------------------------------------------------------------------


def test_channels_beyond_the_pose_must_be_meant_as_padding(tmp_path):
    with pytest.raises(InputError, match=r"action\.dim: is 7, .* has 3 channels"):
        ActionSpec(dim=7, heading="angle")
    with pytest.raises(InputError, match=r"action\.dim: is 7, .* has 4 channels"):
        ActionSpec(dim=7)
    padded = ActionSpec(dim=7, heading="angle", is_padded=True)
    assert padded.fitted(torch.randn(9, 8, 3)).encode(torch.randn(2, 8, 3)).shape == (2, 8, 7)


def test_a_padded_folder_of_before_loads_as_the_same_backbone(tmp_path):
    model = PI0.tiny()
    model.save_pretrained(tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    raw = json.loads(path.read_text())
    assert raw["action"].pop("is_padded")
    path.write_text(json.dumps(raw))
    assert load_backbone(tmp_path / "out").fingerprint() == model.fingerprint()
    assert "is_padded" not in model.action.meaning()


# --- scopes ----------------------------------------------------------------------------------------------------


class Layered(Backbone):
    """A head of torch's own layers, some of which it calls and some of which it does not."""

    family = "layered"
    config_class = TimmConfig
    lora_scopes: ClassVar = {
        "head": r"head\.linear[12]",
        "attention": r"head\.self_attn\.out_proj|out",
        "unused": r"out|spare",
        "weights": r"by_weight",
        "norm": r"norm|out",
        "nothing": r"decoder\..*",
        "broken": r"head(",
        "good": r"out",
    }

    def __init__(self):
        super().__init__(None, ActionSpec(dim=3, heading="angle"), SolverSpec("euler", steps=2))
        self.head = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        self.encoder, self.spare, self.by_weight, self.out = (
            nn.Linear(*s) for s in ((3, 16), (3, 3), (16, 16), (16, 3))
        )
        self.norm, self.times = nn.LayerNorm(16), []

    schedule, prediction = property(lambda self: LinearFlow()), property(lambda self: "velocity")

    def processor(self):
        raise NotImplementedError

    def encode(self, observation):
        raise NotImplementedError

    def features(self, context):
        raise NotImplementedError

    def denoise(self, context, x_t, t):
        self.times.append(t)
        x = self.encoder(x_t) + t[:, None, None]  # no `network_time`: a foreign network takes what it is given
        x = nn.functional.linear(x, self.by_weight.weight)
        return self.out(self.norm(self.head(x))).float()


@pytest.mark.parametrize(
    ("scope", "message"),
    [
        ("head", r"head\.linear1, head\.linear2 lie in torch's TransformerEncoderLayer"),
        ("attention", r"head\.self_attn\.out_proj lie in torch's MultiheadAttention"),
        ("norm", "matches norm, a LayerNorm; only Linear"),
        ("nothing", r"matches no module; linear layers are head\.self_attn\.out_proj"),
        ("broken", "no regular expression"),
    ],
)
def test_scopes_that_cannot_work_name_the_layer(scope, message):
    with pytest.raises(InputError, match=message):
        AdapterPair(Layered(), scope, rank=2)


def test_layers_that_are_never_called_are_named_after_the_first_pass():
    x_t, t = torch.randn(2, 8, 3), torch.rand(2)
    for scope, name in (("unused", "spare"), ("weights", "by_weight")):
        for call, roles in (("denoise", "positive"), ("denoise_both", ("positive", "negative"))):
            passed = getattr(AdapterPair(Layered(), scope, rank=2), call)
            with pytest.raises(InputError, match=f"scope '{scope}': the forward pass never calls {name}"):
                passed(None, x_t, t, roles)


def test_nothing_is_watched_after_the_first_pass():
    pair = AdapterPair(make_backbone(), "all", rank=2)
    pickle.dumps(pair)  # a pair is copied and pickled at any time
    with torch.no_grad():
        contexts = pair.encode(make_observation())
        pair.denoise(contexts["positive"], torch.randn(3, 8, 4), torch.rand(3), "positive")
    assert not any(layer._forward_pre_hooks for layer in pair.layers)


# --- times -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [LinearFlow(noise_at=0, network_scale=1000), LinearFlow(network_scale=1000)])
def test_networks_get_single_times_that_mean_the_same_steps(schedule):
    """Every step of every number of steps: a thousandth too early is another time for the network."""
    for steps in range(1, 400):
        t = torch.linspace(schedule.noise_time, schedule.data_time, steps + 1, dtype=torch.float64)
        short = time_for_network(schedule, t, torch.zeros(1))
        assert short.dtype == torch.float32
        assert torch.equal(schedule.network_time(short), schedule.network_time(t))
        torch.testing.assert_close(short.double(), t, rtol=2**-22, atol=0)


def test_other_times_pass_as_they_are():
    t = torch.tensor([0.3, 0.7], dtype=torch.float64)
    assert time_for_network(VPLinear(), t, torch.zeros(1, dtype=torch.float64)) is t
    assert time_for_network(VPLinear(), t.float(), torch.zeros(1)).dtype == torch.float32
    assert time_for_network(CosineTable(), torch.tensor([3, 5]), torch.zeros(1)).dtype == torch.int64
    assert torch.equal(time_for_network(VPLinear(), t, torch.zeros(1)), VPLinear().network_time(t))


def test_a_foreign_network_samples_though_it_asks_for_no_network_time():
    model = Layered().eval()
    plain = guided_denoiser(lambda x_t, t, role: model.denoise(None, x_t, t), model.schedule, "velocity", None)
    with torch.no_grad():
        assert solve(model.solver, model.schedule, plain, torch.randn(2, 8, 3)).dtype == torch.float32
    assert {t.dtype for t in model.times} == {torch.float32}


@pytest.mark.parametrize("schedule", [VPLinear(), CosineTable(), LinearFlow(), LinearFlow(is_stratified=True)])
def test_training_times_are_where_they_are_wanted(schedule):
    generator = torch.Generator().manual_seed(0)
    here = schedule.sample_t(5, generator)
    assert torch.equal(schedule.sample_t(5, torch.Generator().manual_seed(0), "cpu"), here)
    assert schedule.sample_t(5, device="meta").device.type == "meta"
    assert schedule.sample_t(5, generator, device="meta").device.type == "meta"
    assert schedule.sample_t(5).device.type == "cpu"


# --- torch's own default ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_default_type_is_named_and_nothing_is_cast(tmp_path, dtype):
    backbone = make_backbone()
    backbone.save_pretrained(tmp_path / "base")
    policy = GuidedPolicy(backbone, AdapterPair(backbone, rank=2))
    policy.save_pretrained(tmp_path / "policy", tmp_path / "base")
    torch.set_default_dtype(dtype)
    try:
        for load in (load_backbone, load_policy):
            with pytest.raises(InputError, match=f"set_default_dtype: is {str(dtype).removeprefix('torch.')}"):
                load(tmp_path / ("base" if load is load_backbone else "policy"))
        with pytest.raises(InputError, match="set_default_dtype"):
            init("timm", tmp_path / "init")
        with pytest.raises(InputError, match="set_default_dtype"):
            import_checkpoint("xvla", SOURCES["xvla"], tmp_path / "import")
    finally:
        torch.set_default_dtype(torch.float32)
    assert load_policy(tmp_path / "policy", device="cpu").fingerprint
    assert isinstance(TimmDriver.tiny().config, TimmConfig)


def test_an_observation_of_arrays_is_named() -> None:
    from dipole_vla.policy.arguments import scenes_in

    assert scenes_in({"proprio": torch.zeros(2, 12)}) == 2
    with pytest.raises(InputError, match="observation: proprio must be a tensor"):
        scenes_in({"proprio": torch.zeros(2, 12).numpy()})
