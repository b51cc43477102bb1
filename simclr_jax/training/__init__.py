"""Training: the loop, the step, and what builds them from a config.

In reading order: `loop.py` (all trainings, and pretraining's job), `step.py` (the train
step and pretraining's objective), `objectives.py` and `build.py` (models, optimisers),
`micro_batches.py` (gradient accumulation with the exact contrastive gradient),
`compiling.py` (the step jitted for a mesh), `rematerialization.py`, `arithmetic.py` and
`out_of_memory.py` (a step that fits), `input_pipeline.py` and `device_views.py`
(batches), `starting.py` (the first state), `reporter.py`, `bottleneck.py`,
`preemption.py`, `profiling.py` and `cpu_memory.py`, and the other two trainings,
`finetuning.py` and `distillation.py`.
"""
