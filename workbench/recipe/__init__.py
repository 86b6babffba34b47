"""The YAML that describes an experiment, and the objects it builds."""
