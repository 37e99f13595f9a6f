import pytest

from dipole_vla.data.splits import SeenByRL, check_not_trained_on, refuse_collection
from navsim_adapter.foundation.errors import InputError


@pytest.mark.parametrize("split", ["test", "navtest", "navhard_two_stage", "second-stage", "test/", "./test", "a/test"])
def test_collecting_on_an_evaluation_split_is_refused_unless_allowed(split):
    with pytest.raises(InputError, match="allow-eval-split"):
        refuse_collection(split, allow_eval_split=False)
    refuse_collection(split, allow_eval_split=True)


def test_collecting_on_training_splits_is_fine():
    for split in ("trainval", "navtrain", "mini"):
        refuse_collection(split, allow_eval_split=False)


def test_one_shared_token_is_a_leak():
    seen, logs = SeenByRL(frozenset({"trainval"}), frozenset({"c", "d"}), frozenset({"log-1"})), ["log-2"] * 3
    with pytest.raises(InputError, match="1 of 3 scenes"):
        check_not_trained_on("test", ["a", "b", "c"], logs, seen, allow_eval_split=False)
    assert check_not_trained_on("test", ["a", "b", "c"], logs, seen, allow_eval_split=True)
    assert not check_not_trained_on("test", ["a", "b"], logs, seen, allow_eval_split=False)


def test_held_out_logs_of_the_training_split_may_be_evaluated_others_not():
    seen = SeenByRL(frozenset({"trainval"}), frozenset({"a"}), frozenset({"log-1", "log-2"}))
    assert not check_not_trained_on("trainval", ["b"], ["log-3"], seen, allow_eval_split=False)
    with pytest.raises(InputError, match="0 of 2 scenes, 1 of their 2 logs"):
        check_not_trained_on("trainval", ["b", "c"], ["log-3", "log-2"], seen, allow_eval_split=False)


def test_where_logs_were_not_noted_the_same_split_by_name_is_a_leak():
    seen = SeenByRL.recorded([], {"rl_split": "test"})
    with pytest.raises(InputError, match="rl_split 'test'"):
        check_not_trained_on("test", ["a"], ["log-1"], seen, allow_eval_split=False)


def test_of_several_rounds_every_split_log_and_scene_is_a_leak():
    first = SeenByRL(frozenset({"trainval"}), frozenset("a"), frozenset({"log-1"}))
    seen = first | SeenByRL(frozenset({"mini"}), frozenset("b"), frozenset({"log-2"}), True)
    kept = seen.provenance()
    assert kept == {"rl_split": "mini, trainval", "rl_logs": ["log-1", "log-2"], "allow_eval_split": True}
    assert SeenByRL.recorded(seen.tokens, kept) == seen
    for token, log in (("c", "log-1"), ("c", "log-2"), ("a", "log-3"), ("b", "log-3")):
        assert check_not_trained_on("mini", [token], [log], seen, allow_eval_split=True)
    assert not check_not_trained_on("mini", ["c"], ["log-3"], seen, allow_eval_split=False)
    unnoted = seen | SeenByRL.recorded(["e"], {"rl_split": "train"})
    for split in ("mini", "trainval", "train"):
        assert check_not_trained_on(split, ["c"], ["log-3"], unnoted, allow_eval_split=True)
    assert not check_not_trained_on("test", ["c"], ["log-1"], SeenByRL.recorded([], {}), allow_eval_split=False)
