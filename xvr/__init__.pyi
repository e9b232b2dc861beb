from .animation import animate as animate
from .batch import register_files as register_files
from .conventions import XvrError as XvrError
from .demo import demo as demo
from .detector import Detector as Detector
from .drr import DRR as DRR
from .evaluation import evaluate as evaluate
from .finetuning import finetune as finetune
from .initialisers import fixed as fixed
from .initialisers import from_dicom as from_dicom
from .initialisers import from_model as from_model
from .initialisers import from_result as from_result
from .initialisers import search as search
from .inspector import info as info
from .models import load_model as load_model
from .picker import pick as pick
from .pose import Pose as Pose
from .preregistration import preregister as preregister
from .registration import Adam as Adam
from .registration import GaussNewton as GaussNewton
from .registration import Result as Result
from .registration import Structure as Structure
from .registration import register as register
from .registration import register_together as register_together
from .renderer import render as render
from .simulation import simulate as simulate
from .training import restart as restart
from .training import train as train
from .volume import Volume as Volume
from .volume import dcm2nii as dcm2nii
from .volume import load_chest as load_chest
from .volume import read_volume as read_volume
from .xray import Xray as Xray
from .xray import read_xray as read_xray

__version__: str

def name_clash(folders: list[str] | None = None) -> str | None: ...
