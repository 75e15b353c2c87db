"""Many files, quantized or carried back as one job: resumable, and bit for bit what one call a file gives.

A job reads as one sentence: find the sources → survey what is done → open a file → compute its chunks →
seal it → record it. `run.run` is that sentence; what a job knows lies in DEST, in `.stequant/`.
"""
