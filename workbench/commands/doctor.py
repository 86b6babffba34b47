"""``workbench doctor``: shows what this machine has and what is missing."""

from workbench.commands.options import Json


def doctor(json_path: Json = None) -> None:
    """Show versions, devices, and what each missing feature needs.

    Example: workbench doctor
    """
    from workbench.commands.console import print_rows
    from workbench.services.doctor import report

    print_rows(report().rows(), json_path)
