"""The promise: typed rig.toml, its errors, and the text that ``init`` writes from a rig as it stands."""
