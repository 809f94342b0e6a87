"""Uninformed Students: networks that learn a teacher's description of every patch of good pictures."""
