"""ResNet as torchvision and mmdet name it, in transformers' names."""

from workbench.detectors.conversion.names import Rule


def resnet_rules(there: str, here: str) -> list[Rule]:
    """Rules for a ResNet below the prefix ``there`` that goes below ``here``; a prefix ends with a dot."""
    old, new = there.replace(".", r"\."), here
    block = old + r"layer(\d+)\.(\d+)\."

    def stage(match: object, rest: str) -> str:
        return f"{new}encoder.stages.{int(match[1]) - 1}.layers.{match[2]}.{rest}"  # pyright: ignore[reportIndexIssue]

    return [
        (old + r"conv1\.(\w+)", rf"{new}embedder.embedder.convolution.\1"),
        (old + r"bn1\.(\w+)", rf"{new}embedder.embedder.normalization.\1"),
        (block + r"conv(\d)\.(\w+)", lambda m: stage(m, f"layer.{int(m[3]) - 1}.convolution.{m[4]}")),
        (block + r"bn(\d)\.(\w+)", lambda m: stage(m, f"layer.{int(m[3]) - 1}.normalization.{m[4]}")),
        (block + r"downsample\.0\.(\w+)", lambda m: stage(m, f"shortcut.convolution.{m[3]}")),
        (block + r"downsample\.1\.(\w+)", lambda m: stage(m, f"shortcut.normalization.{m[3]}")),
    ]
