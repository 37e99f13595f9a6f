"""A driver at the wheel of a synthetic world: it sees from where it went, and the others react to it.

`worlds` makes a log's world again, `course` says what is driven and among whom, `drivers` and `served` plan, `drive`
closes the loop, `frames` and `judge` ask the metric. `run` does it for one log, `job` for a split; `summary`, `show`,
`film` and `page` say and show what came out.
"""
