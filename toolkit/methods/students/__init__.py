"""Uninformed Students: networks that regress a teacher's descriptors of the patches of good pictures."""
