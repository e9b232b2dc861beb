"""X-ray to volume registration. `import xvr` loads nothing else: a name below loads its module when first used."""

__version__ = "0.1.0"

import os
import sys

# The names of each module, in the order of the notebooks; __init__.pyi says the same to editors and type checkers
_NAMES = {
    "conventions": "XvrError set_threads",
    "pose": "Pose",
    "detector": "Detector",
    "series": "dcm2nii",
    "volume": "Volume read_volume load_chest",
    "plotting": "show",
    "renderer": "render",
    "drr": "DRR",
    "sampling": "Views",
    "xray": "Xray Reading read_xray",
    "simulation": "Placement CArm Exposure TagErrors simulate",
    "models": "Network load_model",
    "losses": "Losses",
    "training": "Schedule Recipe",
    "watching": "Watch Wandb",
    "cohort": "Stock",
    "commands": "train restart finetune",
    "preregistration": "preregister",
    "initialisers": "Starts fixed from_dicom from_file from_model from_result search",
    "optimisers": "GaussNewton Adam Structure",
    "registration": "Structures MultiView Result register register_together",
    "bones": "cut_out register_bones",
    "kinematics": "smooth joint_coordinates helical_axis",
    "trials": "read_trial",
    "scene": "Scene",
    "report": "report",
    "batch": "Attenuation Files register_files",
    "animation": "animate",
    "tracking": "Following Tracker Tracked track",
    "sequences": "Frames",
    "evaluation": "evaluate",
    "inspector": "info",
    "picker": "pick",
    "demo": "demo",
    "localizer": "check",
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = ["__version__", "name_clash", *_MODULE_OF]


class _Face(type(sys)):
    "A package whose function `demo` stays in sight when its module `demo` is imported"

    def __setattr__(self, name, value):
        if not (name in _MODULE_OF and isinstance(value, type(sys))):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face


def __getattr__(name: str):
    "A name of the table, or a module of the package"
    from importlib import import_module

    if name in _MODULE_OF:
        value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        globals()[name] = value  # the next use finds it without this function
        return value
    if not name.startswith("_"):
        if os.path.isfile(os.path.join(os.path.dirname(__file__), f"{name}.py")):
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"xvr has no {name!r}; {_advice(name)}", name=name, obj=None)  # Python adds no advice
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _advice(name: str) -> str:
    "Where a name is that is not in the table, or which one is like it"
    from difflib import get_close_matches

    from ._modidx import d

    for module, names in d["syms"].items():
        if f"{module}.{name}" in names:
            return f"from {module} import {name}"
    near = get_close_matches(name, __all__, 1)
    return f"did you mean xvr.{near[0]}?" if near else "see dir(xvr)"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - {"os", "sys"})


def name_clash(
    folders: list[str] | None = None,  # To look in; None: where this package lies, and the installed packages
) -> str | None:  # One line, or None without a clash
    "What to type where the distribution xvreg is installed too: both install the import and the command `xvr`"
    if folders is None:
        beside = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        folders = [beside, *(p for p in sys.path if p.endswith(("site-packages", "dist-packages")))]
    for folder in folders:
        found = os.listdir(folder) if os.path.isdir(folder) else []
        if any(name.startswith("xvreg-") and name.endswith((".dist-info", ".egg-info")) for name in found):
            return (
                f"xvreg is installed as well (in {folder}), and both install the import and the command xvr: "
                "pip uninstall -y xvr xvreg, then install one of them again"
            )
    return None


if _clash := name_clash():
    import warnings

    warnings.warn(_clash, RuntimeWarning, stacklevel=2)
