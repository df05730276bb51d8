"""Before a run on a cluster that was there already: do all nodes see the run folder and the inputs?"""

import os
from collections.abc import Sequence

from pipeline.config import Pipeline
from pipeline.errors import RecipeError

_JOB_FILES = "/runtime_resources/working_dir_files/"  # in the paths of what a submitted job has brought


def check_shared(pipeline: Pipeline, to_make: Sequence[str]) -> None:
    """Raises RecipeError, one sentence per node that does not. Joins Ray; does nothing on a private one."""
    if "RAY_ADDRESS" not in os.environ or not to_make:
        return
    folder = pipeline.folder.resolve()
    if _JOB_FILES in str(folder):
        raise RecipeError(
            f"the run folder {folder} lies in the files that `ray job submit` has unpacked, which Ray removes; "
            "choose a folder that all nodes see with output=PATH"
        )
    from cluster.actors import start_ray
    from cluster.shared_folder import unseen

    inputs = {i.path.resolve() for name in to_make for i in pipeline.stages[name].inputs if i.stage is None}
    start_ray()
    mend = "; put the run folder and the inputs on a file system that all nodes mount at the same path"
    if faults := [f"{fault}{mend}" for fault in unseen(folder, sorted(inputs))]:
        raise RecipeError(faults)
