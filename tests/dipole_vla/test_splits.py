import pytest

from dipole_vla.splits import SeenByRL, refuse_collection, refuse_evaluation
from navsim_adapter.errors import InputError


@pytest.mark.parametrize("split", ["test", "navtest", "navhard_two_stage"])
def test_collecting_on_an_evaluation_split_is_refused_unless_allowed(split):
    with pytest.raises(InputError, match="allow-eval-split"):
        refuse_collection(split, allow_eval_split=False)
    refuse_collection(split, allow_eval_split=True)


def test_collecting_on_training_splits_is_fine():
    for split in ("trainval", "navtrain", "mini"):
        refuse_collection(split, allow_eval_split=False)


def test_one_shared_token_is_a_leak():
    with pytest.raises(InputError, match="1 of 3 scenes"):
        refuse_evaluation("test", ["a", "b", "c"], "trainval", {"c", "d"}, allow_eval_split=False)
    assert refuse_evaluation("test", ["a", "b", "c"], "trainval", {"c"}, allow_eval_split=True)
    assert not refuse_evaluation("test", ["a", "b"], "trainval", {"c"}, allow_eval_split=False)


def test_the_same_split_by_name_is_a_leak():
    with pytest.raises(InputError, match="rl_split 'test'"):
        refuse_evaluation("test", ["a"], "test", set(), allow_eval_split=False)


def test_of_several_rounds_every_split_and_scene_is_a_leak():
    seen = SeenByRL.recorded(["a"], {"rl_split": "trainval"}) | SeenByRL(frozenset({"mini"}), frozenset("b"), True)
    kept = seen.provenance()
    assert kept == {"rl_split": "mini, trainval", "allow_eval_split": True}
    assert SeenByRL.recorded(seen.tokens, kept) == seen
    for split, token in (("mini", "c"), ("trainval", "c"), ("test", "a"), ("test", "b")):
        assert refuse_evaluation(split, [token], kept["rl_split"], seen.tokens, allow_eval_split=True)
    for split in ("test", "train"):
        assert not refuse_evaluation(split, ["c"], kept["rl_split"], seen.tokens, allow_eval_split=False)
    assert not refuse_evaluation("test", ["c"], "", (), allow_eval_split=False)
