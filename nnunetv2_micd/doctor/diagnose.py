"""Runs all checks of ``nnUNetv2_micd doctor``."""

from nnunetv2_micd.doctor.finding import Finding
from nnunetv2_micd.doctor.installation import (
    check_folders,
    check_gpus,
    check_trainers,
    check_versions,
)


def diagnose(
    dataset: str | None = None, configuration: str | None = None, plans_name: str = "nnUNetPlans"
) -> list[Finding]:
    """Check the installation and, if one is given, a dataset. Nothing is changed.

    Args:
        dataset: Name or number of the dataset.
        configuration: The only configuration to check. Default: all of the plans.
        plans_name: Name of the plans.

    Raises:
        ValueError: A configuration is given without a dataset.
    """
    if configuration is not None and dataset is None:
        raise ValueError(f"The configuration {configuration} can only be checked together with a dataset; add -d")
    findings = check_versions() + check_folders()
    trainers = check_trainers()
    findings += trainers
    if any(finding.subject == "import" for finding in trainers):
        return findings
    findings += check_gpus()
    if dataset is not None:
        # This imports nnU-Net. Had it been imported above, there would be no report when nnU-Net is broken.
        from nnunetv2_micd.doctor.dataset import check_dataset

        findings += check_dataset(dataset, configuration, plans_name)
    return findings
