"""Why distillation did nothing, or harm: a file per group of causes."""
