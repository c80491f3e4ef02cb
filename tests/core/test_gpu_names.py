"""Which GPUs a pattern names: names as NVML tells them."""

import pytest

from pytest_quantbudget.core.gpus import covers, matches

NAMES = {
    "A10": "NVIDIA A10",
    "A10G": "NVIDIA A10G",
    "A100": "NVIDIA A100-SXM4-40GB|NVIDIA A100-SXM4-80GB|NVIDIA A100 80GB PCIe|NVIDIA A100-PCIE-40GB"
    "|NVIDIA A100-SXM4-40GB MIG 1g.5gb",
    "A2": "NVIDIA A2",
    "A30": "NVIDIA A30",
    "A40": "NVIDIA A40|NVIDIA A40-48Q",
    "RTX A4000": "NVIDIA RTX A4000",
    "RTX 4000": "NVIDIA RTX 4000 Ada Generation|NVIDIA RTX 4000 SFF Ada Generation",
    "B200": "NVIDIA B200",
    "GB200": "NVIDIA GB200",
    "H100": "NVIDIA H100 80GB HBM3|NVIDIA H100 PCIe|NVIDIA H100-PCIe|NVIDIA H100 NVL|NVIDIA H100 80GB HBM3 MIG 3g.40gb",
    "H20": "NVIDIA H20",
    "H200": "NVIDIA H200|NVIDIA H200 NVL",
    "GH200": "NVIDIA GH200 480GB",
    "L4": "NVIDIA L4|NVIDIA L4 24GB|NVIDIA L4-24Q",
    "L40": "NVIDIA L40",
    "L40S": "NVIDIA L40S",
    "T4": "Tesla T4|NVIDIA T4",
    "T400": "NVIDIA T400 4GB",
    "T4G": "NVIDIA T4G",
    "V100": "Tesla V100-SXM2-16GB|Tesla V100-PCIE-32GB",
    "RTX 3090": "NVIDIA GeForce RTX 3090|NVIDIA GeForce RTX 3090 Ti",
    "RTX 4090": "NVIDIA GeForce RTX 4090|NVIDIA GeForce RTX 4090 D|NVIDIA GeForce RTX 4090 Laptop GPU",
}


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("form", ["NVIDIA {}*", "NVIDIA GeForce {}*", "Tesla {}*", "* {}*", "*[ ]{}*"])
def test_a_star_behind_a_familys_number_names_that_family(family: str, form: str) -> None:
    pattern = form.format(family)
    if family[-1].isdigit():
        matched = {other for other, names in NAMES.items() for name in names.split("|") if matches(name, pattern)}
        # `* 4000*` would be the RTX A4000, too, if a word could begin anywhere.
        assert matched <= {family}
        if form.startswith("*"):
            assert all(matches(name, pattern) for name in NAMES[family].split("|"))


@pytest.mark.parametrize(
    ("pattern", "families"),
    [
        ("NVIDIA H*", {"H100", "H20", "H200"}),
        ("*H100*", {"H100"}),
        ("*H200*", {"H200", "GH200"}),
        ("NVIDIA L40S*", {"L40S"}),
        ("*A100*80GB*", {"A100"}),
        ("*RTX 40??*", {"RTX 4000", "RTX 4090"}),
        ("*RTX 40*", set()),
        ("NVIDIA L4[0]*", {"L40", "L40S"}),
        ("NVIDIA L[4*]*", {"L4", "L40", "L40S"}),
        ("nvidia*", set()),
        ("NVIDIA L4", {"L4"}),
        ("cpu", set()),
        ("*", set(NAMES)),
    ],
)
def test_a_pattern_names_families(pattern: str, families: set[str]) -> None:
    assert {family for family, names in NAMES.items() if any(matches(n, pattern) for n in names.split("|"))} == families


@pytest.mark.parametrize(
    ("above", "below", "covered"),
    [
        ("*", "NVIDIA L4*", True),
        ("NVIDIA*", "NVIDIA L4*", True),
        ("NVIDIA L4*", "NVIDIA L4 24GB", True),
        ("NVIDIA L4*", "NVIDIA L40*", False),
        ("NVIDIA L4*", "NVIDIA L4?", False),
        ("NVIDIA L4*", "NVIDIA L4[0]*", False),
        ("NVIDIA L?*", "NVIDIA L4*", True),
    ],
)
def test_a_pattern_that_a_pattern_above_covers(above: str, below: str, covered: bool) -> None:
    assert covers(above, below) is covered
