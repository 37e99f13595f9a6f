"""The guided policy on a real, small backbone: exact ends, shared contexts, the saved folder."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_backbone import make_backbone, make_observation, spread_adapters

from dipole_vla.guidance import guide
from dipole_vla.paths import to_x0
from dipole_vla.policy import AdapterPair, DistilledPair, Guidance, GuidedPolicy, load_policy
from dipole_vla.policy.critic import CriticConfig, OneStepCritic
from dipole_vla.policy.separate import SeparatePair
from dipole_vla.solvers import solve
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import finish, stamp
from navsim_adapter.variants import spread, varied
from tests.same_numbers import MAGNIFIED, assert_same_numbers

SCENES, CANDIDATES = 3, 4


def noise_of(scenes=SCENES, candidates=CANDIDATES, seed=0):
    return torch.randn(scenes, candidates, 8, 4, generator=torch.Generator().manual_seed(seed))


def make_policy(scope="head", scale=0.1, **guidance):
    backbone = make_backbone()
    pair = AdapterPair(backbone, scope, rank=4)
    spread_adapters(pair, scale=scale)
    torch.manual_seed(0)
    critic = OneStepCritic(CriticConfig(feature_dim=4 * 32 + 12, hidden=16)).eval()
    return GuidedPolicy(backbone, pair, critic, Guidance(**guidance), {"rl_split": "train", "seed": 1}, ("a", "b"))


@pytest.fixture(params=["head", "all"])
def policy(request):
    return make_policy(request.param)


def moved(pair):
    """Two full copies as training would leave them: near the base, and apart."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return pair


def make_kind(kind):
    """A policy of every kind of pair, and with a distilled network."""
    name, _, scope = kind.partition(" ")
    policy = make_policy(scope or "head")
    if name == "separate":
        policy.backbone = make_backbone()
        policy.pair = moved(SeparatePair(policy.backbone, scope))
    if name == "distilled":
        policy.distilled = DistilledPair(policy.pair, highest=3.0)
        spread_adapters(policy.distilled, seed=5, scale=0.05)
    return policy


def by_hand(policy, omega, role=None):
    """The sampling loop written out: encode and predict per role, no sharing, no preparation."""
    pair, backbone = policy.pair, policy.backbone

    def denoise(x_t, t):
        def predict(role):
            return pair.denoise(pair.encode(make_observation(), (role,))[role], x_t, t, role)

        output = predict(role) if omega is None else guide(predict("positive"), predict("negative"), omega)
        return to_x0("noise", backbone.schedule, output, x_t, t)

    with torch.no_grad():
        action = solve(backbone.solver, backbone.schedule, denoise, noise_of().flatten(0, 1))
    return backbone.action.decode(action.unflatten(0, (SCENES, CANDIDATES)))


@pytest.mark.parametrize(("omega", "role"), [(0.0, "positive"), (-1.0, "negative"), (None, None)])
def test_ends_are_one_policy_bit_for_bit(policy, omega, role):
    plans = policy.sample(make_observation(), omega, CANDIDATES, noise_of())
    assert plans.shape == (SCENES, CANDIDATES, 8, 3)
    assert torch.equal(plans, by_hand(policy, None, role))


def test_in_between_both_signs_are_combined_at_every_step(policy):
    plans = policy.sample(make_observation(), 1.5, CANDIDATES, noise_of())
    assert_same_numbers(plans, by_hand(policy, 1.5), MAGNIFIED)
    assert (plans - policy.sample(make_observation(), 0.0, CANDIDATES, noise_of())).abs().max() > 1e-2


def test_without_adapters_the_reference_is_the_plain_backbone(policy):
    reference = GuidedPolicy(make_backbone())
    plans = reference.sample(make_observation(), None, CANDIDATES, noise_of())
    assert torch.equal(plans, policy.sample(make_observation(), None, CANDIDATES, noise_of()))
    with pytest.raises(InputError, match="no adapters"):
        reference.sample(make_observation(), 1.0)


def test_no_variants_is_the_choice_among_the_plans_bit_for_bit(policy):
    plans = policy.sample(make_observation(), 1.0, CANDIDATES, noise_of())
    values = policy.value(make_observation(), plans)
    for kept, rated in (
        policy.improved(make_observation(), plans, 0),
        policy.improved(make_observation(), plans),
    ):
        assert torch.equal(kept, plans)
        assert torch.equal(rated, values)
    chosen = plans[range(SCENES), values.argmax(1)]
    assert torch.equal(policy.act(make_observation(), 1.0, CANDIDATES, noise_of(), variants=0), chosen)
    assert torch.equal(policy.act(make_observation(), 1.0, CANDIDATES, noise_of()), chosen)


def test_act_drives_the_best_rated_of_all_plans_and_their_variants(policy):
    plans = policy.sample(make_observation(), 1.0, CANDIDATES, noise_of())
    others = torch.from_numpy(varied(plans.numpy()[:, :, None], spread(6))).float()
    everything = torch.cat([plans[:, :, None], others], 2).flatten(1, 2)
    best = everything[range(SCENES), policy.choose(make_observation(), everything)]
    policy.guidance = replace(policy.guidance, variants=6)
    assert torch.equal(policy.act(make_observation(), 1.0, CANDIDATES, noise_of()), best)
    kept, rated = policy.improved(make_observation(), plans)
    assert (rated >= policy.value(make_observation(), plans)).all()
    assert torch.equal(rated, policy.value(make_observation(), kept))


def test_variants_without_a_critic_are_refused_as_is_a_number_that_is_none(policy):
    with pytest.raises(InputError, match="variants"):
        policy.act(make_observation(), 1.0, 1, noise_of(candidates=1), variants=-1)
    with pytest.raises(InputError, match=r"guidance\.variants"):
        Guidance(variants=-1)
    policy.critic = None
    with pytest.raises(InputError, match=r"variants: 2 .* no critic"):
        policy.act(make_observation(), 1.0, 1, noise_of(candidates=1), variants=2)


def test_a_fresh_pair_samples_as_the_base_for_every_omega():
    policy = GuidedPolicy(make_backbone(), None)
    policy.pair = AdapterPair(policy.backbone, rank=4)
    base = policy.sample(make_observation(), None, CANDIDATES, noise_of())
    for omega in (-1.0, -0.5, 0.0, 1.0, 4.0):
        plans = policy.sample(make_observation(), omega, CANDIDATES, noise_of())
        assert_same_numbers(plans, base, MAGNIFIED)


def test_encoded_scenes_are_shared_by_every_omega_and_number_of_candidates(policy):
    calls = []
    encode = policy.backbone.encode
    policy.backbone.encode = lambda seen: calls.append(1) or encode(seen)
    scenes = policy.encode(make_observation())
    plans = {omega: policy.sample(scenes, omega, CANDIDATES, noise_of()) for omega in (None, -1.0, 0.0, 2.0)}
    policy.act(scenes, 1.0, CANDIDATES, noise_of())
    assert len(calls) == (1 if policy.pair.shares_context else 3)
    for omega, found in plans.items():
        assert torch.equal(found, policy.sample(make_observation(), omega, CANDIDATES, noise_of()))


def test_candidates_are_what_single_plans_would_be(policy):
    together = policy.sample(make_observation(), 1.0, CANDIDATES, noise_of())
    for index in range(CANDIDATES):
        alone = policy.sample(make_observation(), 1.0, 1, noise_of()[:, index : index + 1])
        assert_same_numbers(alone[:, 0], together[:, index], MAGNIFIED)


def test_omega_per_scene_and_per_plan(policy):
    omegas = torch.tensor([0.0, 1.0, 2.0])
    plans = policy.sample(make_observation(), omegas, CANDIDATES, noise_of())
    table = policy.sample(make_observation(), omegas[:, None].expand(-1, CANDIDATES), CANDIDATES, noise_of())
    assert torch.equal(plans, table)
    for scene, omega in enumerate(omegas.tolist()):
        alone = policy.sample(make_observation(), omega, CANDIDATES, noise_of())
        assert_same_numbers(plans[scene], alone[scene], MAGNIFIED)
    with pytest.raises(InputError, match="omega"):
        policy.sample(make_observation(), torch.ones(SCENES + 1), CANDIDATES, noise_of())


GREEDS = (None, -1.0, 0.0, 1.0, 2.0, torch.tensor([0.0, 1.0, 2.0]), torch.tensor([[0.3, 2], [1, 0.3], [2, 1]]))


@pytest.fixture
def impatient():
    """Threads take turns far more often than they do by themselves."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize(
    ("kind", "is_shared"),
    [("lora head", False), ("lora head", True), ("lora all", True), ("separate all", True), ("distilled", True)],
)
def test_threads_get_the_plans_that_each_would_get_alone(kind, is_shared, impatient):
    policy, noise = make_kind(kind), noise_of(candidates=2)

    def ask(scenes, greed):
        plans = policy.sample(scenes, greed, 2, noise, steps=1)
        return plans, policy.value(scenes, plans), policy.choose(scenes, plans)

    wanted = [ask(make_observation(), greed) for greed in GREEDS]
    scenes = policy.encode(make_observation()) if is_shared else make_observation()

    def work(first):
        order = [(first + turn) % len(GREEDS) for turn in range(3)]
        return [(index, ask(scenes, GREEDS[index])) for index in order]

    with ThreadPoolExecutor(8) as pool:
        for answers in pool.map(work, range(8)):
            for index, found in answers:
                assert all(map(torch.equal, found, wanted[index])), GREEDS[index]


def test_what_was_asked_of_scenes_before_changes_no_plan():
    policy, noise = make_policy(), noise_of(candidates=2)
    wanted = [policy.sample(make_observation(), greed, 2, noise, steps=1) for greed in GREEDS]
    for turn in (1, -1):
        scenes = policy.encode(make_observation())
        for greed, plans in list(zip(GREEDS, wanted))[::turn]:
            assert torch.equal(policy.sample(scenes, greed, 2, noise, steps=1), plans)


@pytest.mark.parametrize("kind", ["separate head", "distilled"])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda policy: pickle.loads(pickle.dumps(policy))])  # noqa: S301
def test_a_copy_is_a_policy_of_its_own(kind, duplicate):
    policy = make_kind(kind)
    again = duplicate(policy)
    ask = [(greed, 2, noise_of(candidates=2)) for greed in (None, -1.0, 0.0, 1.0)]
    wanted = [policy.sample(make_observation(), *words, steps=1) for words in ask]
    assert all(torch.equal(again.sample(make_observation(), *w, steps=1), plans) for w, plans in zip(ask, wanted))
    with torch.no_grad():
        for parameter in again.pair.parameters():
            parameter.zero_()
    assert all(torch.equal(policy.sample(make_observation(), *w, steps=1), plans) for w, plans in zip(ask, wanted))
    assert not torch.equal(again.sample(make_observation(), *ask[2], steps=1), wanted[2])


def test_saving_and_loading_while_another_thread_samples(tmp_path, impatient):
    make_backbone().save_pretrained(tmp_path / "base")
    policy, noise = make_policy(), noise_of(candidates=1)
    wanted = policy.sample(make_observation(), 1.0, 1, noise, steps=2)
    with ThreadPoolExecutor(3) as pool:
        samples = [pool.submit(policy.sample, make_observation(), 1.0, 1, noise, steps=2) for _ in range(8)]
        for index in range(2):
            policy.save_pretrained(tmp_path / str(index), backbone=tmp_path / "base")
            again = load_policy(tmp_path / str(index), device="cpu")
            assert torch.equal(again.sample(make_observation(), 1.0, 1, noise, steps=2), wanted)
        assert all(torch.equal(sample.result(), wanted) for sample in samples)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["decoder", "denoise"])
def test_a_compiled_head_follows_the_route(part):
    policy, noise = make_policy(), noise_of(candidates=2)
    greeds = (None, -1.0, 0.0, 1.0, 2.0)
    wanted = [policy.sample(make_observation(), greed, 2, noise, steps=2) for greed in greeds]
    setattr(policy.backbone, part, torch.compile(getattr(policy.backbone, part), backend="eager", fullgraph=True))
    for _ in range(2):
        for greed, plans in zip(greeds, wanted):
            assert torch.equal(policy.sample(make_observation(), greed, 2, noise, steps=2), plans)
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda greed: policy.sample(make_observation(), greed, 2, noise, steps=2), greeds)
        assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("omega", [np.float32(2), np.int64(2), np.array(2.0), torch.tensor(2), 2])
def test_a_number_is_a_number_whoever_made_it(omega):
    policy, noise = make_policy(), noise_of(candidates=1)
    wanted = policy.sample(make_observation(), 2.0, 1, noise, steps=1)
    assert torch.equal(policy.sample(make_observation(), omega, np.int64(1), noise, steps=torch.tensor(1)), wanted)


@pytest.mark.parametrize("omega", [[0, 1, 2], (0.0, 1.0, 2.0), np.array([0, 1, 2]), torch.tensor([[0], [1], [2]])])
def test_omega_per_scene_may_be_a_list_or_an_array(omega):
    policy, noise = make_policy(), noise_of(candidates=1)
    wanted = policy.sample(make_observation(), torch.tensor([0.0, 1.0, 2.0]), 1, noise, steps=1)
    assert torch.equal(policy.sample(make_observation(), omega, 1, noise, steps=1), wanted)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("omega", ["4", "", "Default", True, np.bool_(True), torch.tensor(True), [None, 1.0, 2.0], 1j, b"4", object()]),
        ("omega", [float("nan"), float("inf"), 1e38, 10**400, torch.tensor([0.0, 1.0, 1e38]), 2.0**24, -(2.0**24)]),
        ("omega", [[1.0], [1.0, 2.0], [[1.0, 2.0], [1.0]], torch.ones(SCENES + 1), np.ones((SCENES, 3)), []]),
        ("candidates", [0, -1, 2.0, "2", True, [2], np.array([2]), torch.tensor(2.0), torch.tensor(True)]),
        ("steps", [0, -1, 2.5, "2", False, [2]]),
        ("noise", [noise_of(candidates=2).long(), [[0.0]], noise_of(candidates=2) * float("nan"), noise_of()]),
        ("noise", [noise_of(candidates=2).bool(), noise_of(candidates=2).to(torch.complex64), noise_of(scenes=0)]),
        ("generator", [0, "cpu", np.random.default_rng(0)]),
        ("observation", [{}, None, make_observation(0), {**make_observation(), "proprio": torch.zeros(2, 12)}]),
        ("observation", [{name: value[0] for name, value in make_observation().items()}]),
    ],
)
def test_what_cannot_be_meant_is_refused(name, values):
    policy = make_policy()
    for value in values:
        words = {"observation": make_observation(), "omega": 1.0, "candidates": 2, "steps": 1, name: value}
        for method in (policy.sample, policy.act):
            with pytest.raises(InputError, match=f"^{name}: ") as refusal:
                method(**words)
            assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pixels": None}, "has no pixels; .*pixels \\(B, 3, 3, 32, 32\\)"),
        ({"input_ids": None, "proprio": None}, "has no input_ids, has no proprio; .*proprio \\(B, 12\\)"),
        ({"proprio": torch.zeros(SCENES, 11)}, "proprio is \\(B, 11\\); .*proprio \\(B, 12\\)"),
        ({"pixels": torch.zeros(SCENES, 3, 32, 32)}, "pixels is \\(B, 3, 32, 32\\); .*pixels \\(B, 3, 3, 32, 32\\)"),
    ],
)
@pytest.mark.parametrize("method", ["sample", "act"])
def test_an_observation_unlike_the_processors_is_named(change, said, method):
    policy = make_policy()
    observation = {name: value for name, value in {**make_observation(), **change}.items() if value is not None}
    for given in (observation, policy.encode(observation)):
        with pytest.raises(InputError, match=f"^observation: .*{said}"):
            getattr(policy, method)(given, 1.0, 2, steps=1)


@pytest.mark.parametrize(
    "plans",
    [
        torch.zeros(SCENES + 1, 2, 8, 3),
        torch.zeros(SCENES, 2, 7, 3),
        torch.zeros(SCENES, 2, 8, 4),
        torch.zeros(SCENES, 0, 8, 3),
        torch.zeros(SCENES, 8, 3),
        torch.zeros(SCENES, 2, 8, 3).long(),
        torch.full((SCENES, 2, 8, 3), float("nan")),
        np.zeros((SCENES, 2, 8, 3)),
    ],
)
@pytest.mark.parametrize("has_critic", [True, False])
def test_plans_that_are_not_of_these_scenes_are_refused(plans, has_critic):
    policy = make_policy()
    policy.critic = policy.critic if has_critic else None
    for method in (policy.value, policy.choose):
        with pytest.raises(InputError, match=r"^plans: "):
            method(make_observation(), plans)


def test_scenes_encoded_by_another_policy_are_refused():
    with pytest.raises(InputError, match="another policy"):
        make_policy().sample(make_policy().encode(make_observation()), 1.0)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("omega", [float("nan"), float("inf"), "1", None, True, 1e38]),
        ("candidates", [0, 1.0, True, "1"]),
        ("low", [float("nan"), "0", True]),
        ("high", [2.0, None]),
        ("clamp", [(1.0, -1.0), (1.0,), (float("nan"), 1.0), ("a", "b")]),
        ("rule", ["dipole", None, ["dichotomous"]]),
    ],
)
def test_guidance_that_cannot_be_meant_is_refused(field, values):
    for value in values:
        with pytest.raises(InputError, match=rf"guidance\.(low, )?{field}"):
            Guidance(**{field: value})


def test_a_generator_reproduces(policy):
    draws = [policy.sample(make_observation(), 1.0, 2, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    with pytest.raises(InputError, match="noise"):
        policy.sample(make_observation(), 1.0, 2, noise=noise_of(candidates=3))


def test_the_critic_picks_the_best_of_n(policy):
    scenes = policy.encode(make_observation())
    plans = policy.sample(scenes, 1.0, CANDIDATES, noise_of())
    value = policy.value(scenes, plans)
    best = policy.act(scenes, 1.0, CANDIDATES, noise_of())
    for scene in range(SCENES):
        assert torch.equal(best[scene], plans[scene, value[scene].argmax()])
    policy.critic = None
    assert torch.equal(
        policy.act(scenes, 1.0, 1, noise_of(candidates=1)), policy.sample(scenes, 1.0, 1, noise_of(candidates=1))[:, 0]
    )
    with pytest.raises(InputError, match="no critic"):
        policy.act(scenes, 1.0, CANDIDATES, noise_of())


def test_guidance_may_be_limited_to_the_noisier_half():
    positive, full = (make_policy().sample(make_observation(), w, CANDIDATES, noise_of()) for w in (0.0, 3.0))
    half = make_policy(low=0.5).sample(make_observation(), 3.0, CANDIDATES, noise_of())
    assert not torch.equal(half, positive)
    assert not torch.equal(half, full)
    never = make_policy(low=0.0, high=1e-9).sample(make_observation(), 3.0, CANDIDATES, noise_of())
    assert torch.equal(never, positive)


def test_the_combined_clean_action_may_be_clamped():
    policy = make_policy(scale=0.4, clamp=(-1.5, 1.5))
    plans = policy.sample(make_observation(), 4.0, CANDIDATES, noise_of())
    xy = (plans[..., :2] - torch.tensor([10.0, 0.0])) / torch.tensor([8.0, 2.0])
    assert xy.abs().max() <= 1.5 + 1e-5
    unclamped = make_policy(scale=0.4).sample(make_observation(), 4.0, CANDIDATES, noise_of())
    assert ((unclamped[..., :2] - torch.tensor([10.0, 0.0])) / torch.tensor([8.0, 2.0])).abs().max() > 1.5


def test_rules_without_a_negative_adapter_guide_away_from_the_base():
    policy = make_policy(rule="indicator")
    plans = policy.sample(make_observation(), -1.0, CANDIDATES, noise_of())
    assert torch.equal(plans, policy.sample(make_observation(), None, CANDIDATES, noise_of()))


@pytest.fixture
def saved(tmp_path):
    make_backbone().save_pretrained(tmp_path / "base")
    policy = make_policy(omega=0.5, candidates=2)
    policy.save_pretrained(tmp_path / "policy", backbone=tmp_path / "base")
    return tmp_path


def test_a_saved_policy_samples_the_same_numbers(saved):
    policy, again = make_policy(omega=0.5, candidates=2), load_policy(saved / "policy", device="cpu")
    assert again.fingerprint == policy.fingerprint
    assert again.guidance == policy.guidance
    assert (again.rl_split, again.rl_tokens, again.provenance["seed"]) == ("train", ("a", "b"), 1)
    for omega in (None, -1.0, 0.0, 2.0):
        wanted = policy.sample(make_observation(), omega, CANDIDATES, noise_of())
        assert torch.equal(again.sample(make_observation(), omega, CANDIDATES, noise_of()), wanted)
    best = again.act(make_observation(), noise=noise_of(candidates=2))  # the saved omega and candidates
    assert torch.equal(best, policy.act(make_observation(), 0.5, 2, noise_of(candidates=2)))


def test_guidance_of_a_loaded_policy_is_replaced_and_written_to_a_folder_of_its_own(saved):
    """As docs/inference.md says it."""
    policy = load_policy(saved / "policy", device="cpu")
    policy.guidance = replace(policy.guidance, low=0.5, clamp=(-1.5, 1.5))
    wanted = make_policy(low=0.5, clamp=(-1.5, 1.5)).sample(make_observation(), 4.0, CANDIDATES, noise_of())
    assert torch.equal(policy.sample(make_observation(), 4.0, CANDIDATES, noise_of()), wanted)
    policy.save_pretrained(saved / "tamed", backbone=saved / "base")
    finish(saved / "tamed", {"from": "policy", "low": 0.5})
    assert stamp(saved / "tamed")  # what evaluate asks of its inputs
    again = load_policy(saved / "tamed", device="cpu")
    assert (again.guidance, again.rl_tokens) == (policy.guidance, policy.rl_tokens)
    (saved / "tamed" / "policy.json").write_text("{}")
    with pytest.raises(InputError, match="not finished or damaged"):
        stamp(saved / "tamed")


def test_a_policy_folder_may_move_with_its_backbone(saved):
    (saved / "elsewhere").mkdir()
    for name in ("base", "policy"):
        shutil.move(saved / name, saved / "elsewhere" / name)
    assert load_policy(saved / "elsewhere" / "policy", device="cpu").pair is not None
    shutil.move(saved / "elsewhere" / "base", saved / "base")
    with pytest.raises(InputError, match="is not there") as told:
        load_policy(saved / "elsewhere" / "policy", device="cpu")
    assert load_policy(saved / "elsewhere" / "policy", backbone=saved / "base", device="cpu").pair is not None
    where = str(told.value).partition("ln -s FOLDER ")[2]  # the other remedy
    Path(where).symlink_to(saved / "base")
    assert load_policy(saved / "elsewhere" / "policy", device="cpu").pair is not None
    with pytest.raises(InputError, match=r"--backbone: .* no policy folder"):
        load_policy(saved / "base", backbone=saved / "base", device="cpu")


def test_a_backbone_folder_loads_as_the_reference_policy(saved):
    reference = load_policy(saved / "base", device="cpu")
    assert reference.pair is None
    assert reference.rl_split is None
    assert reference.fingerprint == make_backbone().fingerprint()
    assert reference.noise_shape == (8, 4)
    assert reference.processor.cameras == ("CAM_L0", "CAM_F0", "CAM_R0")


def test_another_base_is_refused_naming_both(saved):
    make_backbone(seed=1).save_pretrained(saved / "other")
    with pytest.raises(InputError, match=r"base is .*, this pair's is .*; pass the matching checkpoint"):
        load_policy(saved / "policy", backbone=saved / "other", device="cpu")


def test_a_base_in_another_precision_is_told_as_such(saved):
    with pytest.raises(InputError, match=r"base is .*, this pair's is .*saved in; this one is bfloat16 now"):
        AdapterPair.from_pretrained(make_backbone().to(torch.bfloat16), saved / "policy")


def test_a_bad_policy_file_names_its_field(saved):
    file = saved / "policy" / "policy.json"
    raw = json.loads(file.read_text())
    file.write_text(json.dumps({**raw, "guidance": {**raw["guidance"], "omgea": 1.0}}))
    with pytest.raises(InputError, match="did you mean 'omega'"):
        load_policy(saved / "policy", device="cpu")
    file.write_text("{")
    with pytest.raises(InputError, match=r"policy\.json: cannot be read"):
        load_policy(saved / "policy", device="cpu")


def test_start_noise_and_guidance_of_a_call(policy):
    noise = noise_of(candidates=2)
    scenes = policy.encode(make_observation())
    plans = policy.sample(scenes, 2.0, 2, noise)
    assert torch.equal(policy.sample(scenes, 2.0, 2, noise, start_scale=1.0, guidance={}), plans)
    assert_same_numbers(
        policy.sample(scenes, 2.0, 2, noise, start_scale=0.5), policy.sample(scenes, 2.0, 2, 0.5 * noise)
    )
    still = policy.sample(scenes, None, 2, noise, start_scale=0)
    assert_same_numbers(still[:, 0], still[:, 1])
    shaped = policy.sample(scenes, 2.0, 2, noise, guidance={"power": 1.0, "decay": 0.5})
    assert not torch.allclose(shaped, plans)
    for omega in (0.0, -1.0):
        own = policy.sample(scenes, omega, 2, noise)
        assert torch.equal(policy.sample(scenes, omega, 2, noise, guidance={"distance": 1.0, "early": 0.5}), own)
    for wrong in (-0.5, float("nan"), 1e38, 10**400, "1", True):
        with pytest.raises(InputError, match="start_scale"):
            policy.sample(scenes, 1.0, 2, noise, start_scale=wrong)
    with pytest.raises(InputError, match="guidance"):
        policy.sample(scenes, 1.0, 2, noise, guidance={"omega": 2.0})
