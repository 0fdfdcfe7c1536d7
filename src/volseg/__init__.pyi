from volseg.api import all_ranks as all_ranks
from volseg.api import calibrate as calibrate
from volseg.api import check as check
from volseg.api import evaluate as evaluate
from volseg.api import export as export
from volseg.api import generate as generate
from volseg.api import import_model as import_model
from volseg.api import info as info
from volseg.api import ingest as ingest
from volseg.api import plan_partition as plan_partition
from volseg.api import run_study as run_study
from volseg.api import segment as segment
from volseg.api import train as train
from volseg.api import verify_partition as verify_partition

__version__: str
