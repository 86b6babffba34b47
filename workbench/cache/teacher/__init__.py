"""The teacher cache: a teacher's answers on disk, with the augmentation that each belongs to."""
