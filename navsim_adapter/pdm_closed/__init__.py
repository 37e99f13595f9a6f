"""PDM-Closed, the rule-based driver whose progress every score is measured against (metric 4.4).

`forecast` says what it believes of the road users, `rollout` drives fifteen proposals among them, `choice` scores
them and keeps one.
"""

from navsim_adapter.pdm_closed.choice import plan_references

__all__ = ["plan_references"]
