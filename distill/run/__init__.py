"""A run around its stages: its plan, its costs, what changed since, and the notes that it leaves in its folder."""
