"""Pictures and data sets: reading files, layouts on disk, labelled sets, and synthetic defects."""
