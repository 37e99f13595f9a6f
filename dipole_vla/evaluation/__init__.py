"""From a policy and a split to numbers a person can trust: the omega x N sweep, its summary."""
