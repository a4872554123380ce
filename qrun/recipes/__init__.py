"""One run from config to record: each module is one verb, readable from top to bottom."""
