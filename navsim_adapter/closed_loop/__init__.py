"""A driver at the wheel of a synthetic world: it sees from where it went, and the others react to it.

`worlds` makes a log's world again, `course` says what is driven and among whom, `drivers` and `served` plan, `drive`
closes the loop, `judge` asks the metric, `job` does it for a split, `summary`, `page` and `film` show what came out.
"""
