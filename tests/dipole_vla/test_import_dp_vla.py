"""Importing DP-VLA's published forms, and parity with the public code.

`data/parity/dp_vla/` holds a tiny checkpoint written by that code (commit f7c2d9a) with both of its adapters, the
configuration of its Florence-2, key lists of the other forms it writes, and what it computed: encoder tokens,
predictions of base and adapters, and full sampling runs (10 and 5 steps) for noise, clean-action and guided sampling.
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from dp_vla_forms import PARITY, wrapped
from identities import check_every_key_counts, check_identities
from safetensors.torch import load_file, save_file

from dipole_vla.backbones import load_backbone
from dipole_vla.backbones.dp_vla.importer import FLORENCE_BASE
from dipole_vla.backbones.dp_vla.model import DPVLA, DPVLAConfig
from dipole_vla.backbones.florence.encoder import FlorenceEncoder, FlorenceSizes, native_names
from dipole_vla.backbones.florence.importer import SHARED, TOKENS, EncoderLayout
from dipole_vla.backbones.prompt import small_tokenizer
from dipole_vla.commands.import_ import convert, import_checkpoint
from dipole_vla.commands.recipe import call
from dipole_vla.paths import to_x0
from dipole_vla.policy import GuidedPolicy, load_policy
from dipole_vla.solvers import solve
from navsim_adapter.foundation.errors import InputError
from tests.same_numbers import MAGNIFIED, assert_same_numbers

PUBLISHED_KEYS = Path(__file__).resolve().parents[3] / "shared" / "checkpoint_layouts" / "dp_vla.keys.txt"


@pytest.fixture(scope="module")
def facts():
    return load_file(PARITY / "facts.safetensors")


def observation_of(facts):
    return {key: facts[f"in.{key}"] for key in ("pixels", "input_ids", "proprio")}


# --- parity ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prediction", "kinematic"), [("noise", "waypoint"), ("sample", "diff")])
def test_an_imported_checkpoint_gives_the_upstream_numbers(tmp_path, facts, prediction, kinematic):
    import_checkpoint("dp_vla", PARITY, tmp_path / "out", prediction=prediction, kinematic=kinematic)
    model = load_backbone(tmp_path / "out")
    assert (model.prediction, model.action.kinematic, model.solver.start_scale) == (prediction, kinematic, 0.5)
    with torch.no_grad():
        context = model.encode(observation_of(facts))
        assert_same_numbers(context["tokens"], facts["tokens"])
        found = model.denoise(context, facts["in.x_t"], facts["in.t"])
        assert_same_numbers(found, facts[f"{prediction}.prediction"])

        def denoise(x_t, t):
            return to_x0(model.prediction, model.schedule, model.denoise(context, x_t, t), x_t, t)

        for steps in (10, 5):
            sampled = solve(model.solver.with_steps(steps), model.schedule, denoise, facts["in.noise"])
            assert_same_numbers(sampled, facts[f"{prediction}.sampled.{steps}"], MAGNIFIED)


def test_imported_adapters_give_the_upstream_numbers(tmp_path, facts):
    import_checkpoint("dp_vla", PARITY, tmp_path / "out", rl_split="trainval")
    policy = load_policy(tmp_path / "out" / "policy", device="cpu")
    assert isinstance(policy, GuidedPolicy)
    assert (policy.pair.rank, policy.pair.alpha, policy.guidance.omega) == (2, 3, 1.0)
    assert policy.rl_split == "trainval"
    _check_adapters(policy, facts)
    plans = policy.sample(observation_of(facts), noise=facts["in.noise"][:, None])[:, 0]
    wanted = policy.backbone.action.decode(facts["guided.sampled.10"])
    assert_same_numbers(plans[..., :2], wanted[..., :2], MAGNIFIED)
    assert_same_numbers(plans[..., 2], wanted[..., 2], MAGNIFIED)


def _check_adapters(policy, facts):
    with torch.no_grad():
        context = policy.backbone.encode(observation_of(facts))
        for role in ("positive", "negative", None):
            found = policy.pair.denoise(context, facts["in.x_t"], facts["in.t"], role)
            assert_same_numbers(found, facts[f"guided.prediction.{role or 'base'}"])


@pytest.mark.parametrize("scope", ["head", "all"])
def test_identities_hold(tmp_path, facts, scope):
    import_checkpoint("dp_vla", PARITY, tmp_path / "out", prediction="sample")
    check_identities(load_backbone(tmp_path / "out"), observation_of(facts), scope)


# --- forms of the source ---------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path):
    """The folder without adapters."""
    folder = Path(shutil.copytree(PARITY, tmp_path / "source"))
    shutil.rmtree(folder / "lora")
    return folder


@pytest.fixture
def plain(source, tmp_path):
    """Fingerprint of that folder, imported."""
    import_checkpoint("dp_vla", source, tmp_path / "plain")
    return load_backbone(tmp_path / "plain").fingerprint()


def test_a_torch_file_in_a_folder_is_read(source, tmp_path, plain):
    file = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    torch.save(file, source / "pytorch_model.bin")
    import_checkpoint("dp_vla", source, tmp_path / "out")
    assert load_backbone(tmp_path / "out").fingerprint() == plain


@pytest.mark.parametrize("prefix", ["agent.model.", "module.", "model.", "module.agent.model."])
def test_a_lightning_file_is_read(source, tmp_path, plain, prefix):
    file = load_file(source / "model.safetensors")
    state = {prefix + name: tensor for name, tensor in file.items()}
    torch.save({"state_dict": state, "epoch": 3, "optimizer_states": []}, tmp_path / "last.ckpt")
    import_checkpoint("dp_vla", tmp_path / "last.ckpt", tmp_path / "out", heads=2, encoder=source / "florence")
    assert load_backbone(tmp_path / "out").fingerprint() == plain


def test_a_lightning_file_without_its_configuration_says_what_it_needs(source, tmp_path):
    torch.save({"state_dict": load_file(source / "model.safetensors")}, tmp_path / "last.ckpt")
    with pytest.raises(InputError, match="pass --heads"):
        import_checkpoint("dp_vla", tmp_path / "last.ckpt", tmp_path / "out", encoder=source / "florence")
    with pytest.raises(InputError, match="pass --encoder with the Florence-2 folder"):
        import_checkpoint("dp_vla", tmp_path / "last.ckpt", tmp_path / "out", heads=2)


@pytest.mark.parametrize("name", ["/home/trainer/florence", "hub/elsewhere", "florence/"])
def test_the_encoder_is_found_where_the_checkpoint_was_moved_to(source, tmp_path, plain, name):
    raw = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**raw, "encoder_name": name}))
    import_checkpoint("dp_vla", source, tmp_path / "out")
    assert load_backbone(tmp_path / "out").fingerprint() == plain


@pytest.mark.parametrize("form", ["full_with_lora", "ckpt"])
def test_a_file_with_adapters_inside_is_read(source, tmp_path, plain, facts, form):
    """Once adapters are attached, the public code renames the layers under them, and a .ckpt has them twice."""
    file = wrapped(json.loads((PARITY / "names.json").read_text())[form])
    if form == "ckpt":
        (source / "model.safetensors").unlink()
        torch.save({"state_dict": file}, source / "last.ckpt")
        import_checkpoint("dp_vla", source / "last.ckpt", tmp_path / "out")
    else:
        save_file(file, source / "model.safetensors")
        import_checkpoint("dp_vla", source, tmp_path / "out")
    assert load_backbone(tmp_path / "out").fingerprint() == plain
    _check_adapters(load_policy(tmp_path / "out" / "policy", device="cpu"), facts)


def test_adapters_alone_need_their_base(source, tmp_path, plain, facts):
    only = tmp_path / "only"
    shutil.copytree(PARITY / "lora", only / "lora")
    shutil.copy(PARITY / "config.json", only)
    with pytest.raises(InputError, match="pass its folder as --base"):
        import_checkpoint("dp_vla", only, tmp_path / "out")
    import_checkpoint("dp_vla", only, tmp_path / "out", base=tmp_path / "plain")
    _check_adapters(load_policy(tmp_path / "out", device="cpu"), facts)
    (only / "lora" / "negative" / "adapter_config.json").unlink()
    with pytest.raises(InputError, match="lora/negative"):
        import_checkpoint("dp_vla", only, tmp_path / "other", base=tmp_path / "plain")


@pytest.mark.parametrize("change", ["missing", "shape", "unexpected", "rank"])
def test_adapters_that_do_not_fit_are_refused(tmp_path, change):
    folder = Path(shutil.copytree(PARITY, tmp_path / "source"))
    path = folder / "lora" / "negative" / "adapter_model.safetensors"
    file = load_file(path)
    name = next(iter(file))
    if change == "unexpected":
        file["base_model.model.blocks.0.extra.lora_A.weight"] = file[name].clone()
    elif change == "shape":
        file[name] = torch.zeros(3, 3)
    elif change == "missing":
        del file[name]
    else:
        config = folder / "lora" / "negative" / "adapter_config.json"
        config.write_text(config.read_text().replace('"r": 2', '"r": 4'))
    save_file(file, path)
    message = (
        "different rank" if change == "rank" else "negative: .*" + ("blocks.0.extra" if change == "unexpected" else "")
    )
    with pytest.raises(InputError, match=message):
        import_checkpoint("dp_vla", folder, tmp_path / "out")


def florence_folder(source, folder, naming="older"):
    """A plain Florence-2 folder with the encoder of the checkpoint, and the decoder and head that ours leaves out."""
    file = load_file(source / "model.safetensors")
    encoder = {name.removeprefix("encoder."): t for name, t in file.items() if name.startswith("encoder.")}
    raw = json.loads((source / "florence" / "config.json").read_text())
    if naming == "native":
        table = encoder["language_model.model.shared.weight"]
        encoder = {f"model.{name}": tensor for name, tensor in native_names(encoder).items()}
        encoder["model.language_model.shared.weight"] = encoder.pop("model." + TOKENS)
        encoder["model.language_model.decoder.layers.0.fc1.weight"] = torch.zeros(2)
        encoder["lm_head.weight"] = table.clone()
        vision = raw["vision_config"]
        raw["vision_config"] = {
            "model_type": "florence_vision",
            "embed_dim": vision["dim_embed"],
            "max_position_embeddings": vision["image_pos_embed"]["max_pos_embeddings"],
            **{key: vision[key] for key in ("num_heads", "num_groups", "depths", "patch_size", "patch_stride",
                                            "patch_padding", "patch_prenorm", "window_size", "projection_dim")},
        }  # fmt: skip
    else:
        encoder["language_model.model.decoder.layers.0.fc1.weight"] = torch.zeros(2)
        encoder["language_model.lm_head.weight"] = encoder["language_model.model.shared.weight"].clone()
    folder.mkdir()
    save_file(encoder, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


@pytest.mark.parametrize("encoder", ["florence", "full", "imported"])
def test_a_decoder_alone_is_joined_with_an_encoder(source, tmp_path, plain, encoder):
    places = {"florence": tmp_path / "florence2", "full": tmp_path / "full", "imported": tmp_path / "plain"}
    florence_folder(source, tmp_path / "florence2")
    shutil.copytree(source, tmp_path / "full")
    alone = Path(shutil.copytree(source, tmp_path / "alone", ignore=shutil.ignore_patterns("florence")))
    file = load_file(source / "model.safetensors")
    save_file({name: t for name, t in file.items() if name.startswith("decoder.")}, alone / "model.safetensors")
    raw = json.loads((alone / "config.json").read_text())
    (alone / "config.json").write_text(json.dumps({**raw, "with_encoder": False, "encoder_name": "hub/elsewhere"}))
    with pytest.raises(InputError, match="holds only the decoder; pass --encoder"):
        import_checkpoint("dp_vla", alone, tmp_path / "none")
    import_checkpoint("dp_vla", alone, tmp_path / "out", encoder=places[encoder])
    assert load_backbone(tmp_path / "out").fingerprint() == plain


@pytest.mark.parametrize("naming", ["older", "native"])
def test_a_florence_folder_is_a_start(source, tmp_path, plain, naming):
    folder = florence_folder(source, tmp_path / "florence2", naming)
    small_tokenizer(40).save_pretrained(str(tmp_path / "words"))
    if len(small_tokenizer(40)) > 40:  # the tiny vocabulary is smaller than any tokenizer of this prompt
        with pytest.raises(InputError, match="tokens, the model 40"):
            import_checkpoint("dp_vla", folder, tmp_path / "refused", tokenizer=tmp_path / "words")
    for seed in (0, 1):
        import_checkpoint("dp_vla", folder, tmp_path / f"out{seed}", seed=seed)
    one, other = (load_backbone(tmp_path / f"out{seed}") for seed in (0, 1))
    assert isinstance(one, DPVLA)
    assert (one.prediction, one.config.width, one.config.depth) == ("noise", 16, 12)
    reference = load_backbone(tmp_path / "plain").encoder.state_dict()
    for name, tensor in one.encoder.state_dict().items():
        assert torch.equal(tensor, reference[name])
        assert torch.equal(tensor, other.encoder.state_dict()[name])
    assert one.fingerprint() != other.fingerprint()
    assert not any(tensor.is_meta for tensor in (*one.parameters(), *one.buffers()))


def test_an_unknown_key_of_a_florence_folder_is_named(source, tmp_path):
    folder = florence_folder(source, tmp_path / "florence2")
    file = load_file(folder / "model.safetensors")
    save_file({**file, "vision_tower.head.weight": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"unexpected key vision_tower\.head\.weight"):
        import_checkpoint("dp_vla", folder, tmp_path / "out")


def test_a_tokenizer_travels_with_the_model(tmp_path):
    """A full checkpoint with a vocabulary large enough for words; the tokenizer lies in the encoder's folder."""
    words = small_tokenizer()
    model = DPVLA.tiny(DPVLAConfig.tiny(width=32, depth=1, text_layers=1))
    folder = write_published(model, tmp_path / "published")
    import_checkpoint("dp_vla", folder, tmp_path / "without")
    with pytest.raises(InputError, match="no tokenizer"):
        load_backbone(tmp_path / "without").processor()
    words.save_pretrained(str(folder / "florence"))
    import_checkpoint("dp_vla", folder, tmp_path / "with")
    found = load_backbone(tmp_path / "with")
    assert found.fingerprint() == load_backbone(tmp_path / "without").fingerprint()
    assert found.processor().tokenizer("- Speed: 3.10 m/s")["input_ids"] == words("- Speed: 3.10 m/s")["input_ids"]


def write_published(model, folder):
    """A model of ours in the published layout (our own reading of it; parity is shown by the upstream file above)."""
    layout = EncoderLayout(model.encoder.state_dict(), True, "encoder.")
    file = {layout.name(name): tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    file["encoder.image_projection"] = file["encoder.image_projection"].T.contiguous()
    file[layout.name(SHARED)] = file[layout.name(TOKENS)].clone()
    file["encoder.language_model.final_logits_bias"] = torch.zeros(1, model.config.text_vocabulary)
    file |= {name: t for name, t in model.state_dict().items() if name.startswith("decoder.")}
    (folder / "florence").mkdir(parents=True)
    save_file(file, folder / "model.safetensors")
    config = model.config
    raw = json.loads((PARITY / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**raw, "hidden_size": config.width, "depth": config.depth, "num_heads": config.heads})
    )
    native = config.part(FlorenceSizes).native()
    (folder / "florence" / "config.json").write_text(native.to_json_string())
    # the published head's input layers are 512 wide, whatever the head
    with torch.no_grad():
        for layer, width in (("action_in_proj", 4), ("y_in_proj", 12)):
            file[f"decoder.{layer}.fc1.weight"] = torch.randn(512, width)
            file[f"decoder.{layer}.fc1.bias"] = torch.randn(512)
            file[f"decoder.{layer}.fc2.weight"] = torch.randn(config.width, 512)
    save_file(file, folder / "model.safetensors")
    return folder


# --- what is refused -------------------------------------------------------------------------------------------


def test_every_key_counts(source, tmp_path):
    file = load_file(source / "model.safetensors")
    special = [
        name for name in file if "shared" in name or "final_logits" in name or name == "encoder.image_projection"
    ]
    assert len(special) == 3
    names = [*special, *list(file)[::23]]
    check_every_key_counts(
        file, names, partial(save_file, filename=source / "model.safetensors"),
        lambda: import_checkpoint("dp_vla", source, tmp_path / "out"),
    )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_a_projection_that_is_not_turned_is_refused(source, tmp_path):
    file = load_file(source / "model.safetensors")
    file["encoder.image_projection"] = torch.zeros(16, 24)
    save_file(file, source / "model.safetensors")
    with pytest.raises(InputError, match=r"encoder.image_projection has shape \[16, 24\]"):
        import_checkpoint("dp_vla", source, tmp_path / "out")


def test_token_tables_that_differ_are_refused(source, tmp_path):
    file = load_file(source / "model.safetensors")
    file["encoder.language_model.model.shared.weight"] += 1
    save_file(file, source / "model.safetensors")
    with pytest.raises(InputError, match="differ, but are one tied table"):
        import_checkpoint("dp_vla", source, tmp_path / "out")


def test_a_key_under_two_prefixes_is_refused(source, tmp_path):
    file = load_file(source / "model.safetensors")
    file["model.decoder.pos_emb"] = file["decoder.pos_emb"].clone()
    save_file(file, source / "model.safetensors")
    with pytest.raises(InputError, match=r"decoder\.pos_emb is there twice"):
        import_checkpoint("dp_vla", source, tmp_path / "out")


class Touch:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_torch_file_that_runs_code_is_not_run(source, tmp_path):
    (source / "model.safetensors").unlink()
    mark = tmp_path / "touched"
    (source / "pytorch_model.bin").write_bytes(pickle.dumps({"decoder.pos_emb": Touch(str(mark))}, protocol=2))
    with pytest.raises(InputError, match="cannot be read as plain tensors"):
        import_checkpoint("dp_vla", source, tmp_path / "out")
    torch.save({"state_dict": {"decoder.pos_emb": Touch(str(mark))}}, source / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be read as plain tensors"):
        import_checkpoint("dp_vla", source, tmp_path / "out")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "hidden_size must be int, got None"),
        ({"num_heads": 3}, "3 heads do not divide the width 16"),
        ({"depth": 3}, "missing key decoder.blocks.2"),
        ({"model_type": "score"}, "score cannot be imported"),
        ({"kinematic_type": "bicycle"}, "action.kinematic"),
    ],
)
def test_a_bad_configuration_names_its_field(source, tmp_path, changes, message):
    raw = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**raw, **changes}))
    with pytest.raises(InputError, match=message):
        import_checkpoint("dp_vla", source, tmp_path / "out")


def test_head_counts_are_not_guessed(source, tmp_path):
    shutil.rmtree(source / "florence")
    with pytest.raises(InputError, match="does not hold its head counts; pass --encoder"):
        import_checkpoint("dp_vla", source, tmp_path / "out")


def test_what_is_imported_already_is_refused(source, tmp_path):
    import_checkpoint("dp_vla", source, tmp_path / "out")
    with pytest.raises(InputError, match="already a checkpoint of this program"):
        import_checkpoint("dp_vla", tmp_path / "out", tmp_path / "again")


def test_a_copy_of_the_decoder_that_differs_is_refused(source, tmp_path):
    file = wrapped(json.loads((PARITY / "names.json").read_text())["ckpt"])
    name = "agent.model.lora_decoder.base_model.model.blocks.1.mlp.fc1.base_layer.bias"
    torch.save({"state_dict": {**file, name: file[name] + 1}}, source / "last.ckpt")
    with pytest.raises(InputError, match=r"lora_decoder.blocks.1.mlp.fc1.bias: it is no copy"):
        import_checkpoint("dp_vla", source / "last.ckpt", tmp_path / "out")


def test_what_the_file_does_not_say_follows_the_published_recipes(source, tmp_path):
    for changes, prediction in (
        ({}, "noise"),
        ({"kinematic_type": "diff"}, "sample"),
        ({"kinematic_type": "diff", "model_type": "noise"}, "noise"),
    ):
        raw = json.loads((PARITY / "config.json").read_text())
        (source / "config.json").write_text(json.dumps({**raw, **changes}))
        import_checkpoint("dp_vla", source, tmp_path / f"out{prediction}{len(changes)}")
        assert load_backbone(tmp_path / f"out{prediction}{len(changes)}").prediction == prediction


# --- the command -----------------------------------------------------------------------------------------------


def test_the_command_imports_once(source, tmp_path, capsys):
    words = ["--family", "dp_vla", str(source), "--out", str(tmp_path / "out"), "--prediction", "noise"]
    call(convert, words, "import", positional=True)
    assert "every key of the source accounted for" in capsys.readouterr().out
    call(convert, words, "import", positional=True)
    assert "already complete" in capsys.readouterr().out
    with pytest.raises(InputError, match="prediction"):
        call(convert, [*words[:-1], "sample"], "import", positional=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"family": "dp_vl"}, "did you mean 'dp_vla'"),
        ({"horizon": 8}, "--horizon: means nothing to family dp_vla"),
        ({"source": Path("nowhere")}, "nowhere: no such file or folder"),
        ({"family": None}, "--family: is required"),
    ],
)
def test_options_that_make_no_sense_are_refused(source, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        convert(**{"family": "dp_vla", "source": source, "out": tmp_path / "out", **options})


# --- true sizes ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not PUBLISHED_KEYS.is_file(), reason="the published key list is not beside this clone")
def test_the_published_file_fits_name_by_name():
    lines = re.findall(r"^((?:encoder|decoder)\S*) \[(.*?)\]", PUBLISHED_KEYS.read_text(), re.MULTILINE)
    file = {name: tuple(int(n) for n in shape.split(",")) for name, shape in lines}
    with torch.device("meta"):
        encoder = FlorenceEncoder(FlorenceSizes()).state_dict()
    wanted = EncoderLayout(encoder, True, "encoder.").wanted((SHARED, TOKENS))
    found = {name: shape for name, shape in file.items() if name.startswith("encoder.")}
    assert found.pop("encoder.language_model.final_logits_bias") == (1, 51289)
    assert {name: tuple(tensor.shape) for name, tensor in wanted.items()} == found


def test_the_smaller_published_encoder_has_its_size():
    with torch.device("meta"):
        encoder = FlorenceEncoder(FLORENCE_BASE)
    assert sum(p.numel() for p in encoder.vision_tower.parameters()) == pytest.approx(90.3e6, rel=0.01)
