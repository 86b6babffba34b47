"""One job from a dataset to a distilled student: plan, teacher, cache, students, answer."""
