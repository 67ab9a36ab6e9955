"""Steps of worker processes: nothing is left in shared memory, even if a step lives until Python ends."""

import subprocess
import sys

CODE = """
from fcclip_jax.data.pipeline import train_batches
from fcclip_jax.world.panoptic import WorldDataset

if __name__ == "__main__":
    dataset = WorldDataset("train", 40, seen_only=True)
    steps = train_batches(dataset, crop=64, batch_size=2, process_index=0, process_count=1, seed=0, workers=2)
    kept = [next(steps) for _ in range(3)]
    steps.close()
    print([step.batch.images.shape for step in kept])
"""


def test_steps_that_outlive_the_stream(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(CODE)
    command = [sys.executable, "-c", f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{[(2, 64, 64, 3)] * 3}\n"
    assert "leaked" not in done.stderr and "Traceback" not in done.stderr, done.stderr
