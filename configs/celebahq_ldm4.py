"""CelebA-HQ 256, unconditional LDM-4 (274.056M parameters in the UNet).

    python train.py --config=configs/celebahq_ldm4.py --workdir=runs/celebahq \\
        --config.data.path=DIR --config.first_stage.path=FIRST_STAGE

FIRST_STAGE is a weights directory of configs/vq_f4.py, trained or converted.
Batch 48, learning rate 9.6e-5 = 2e-6 x 48, 410k iterations on one A100.
Result: FID 5.11, precision 0.72, recall 0.49 with 500 DDIM steps (paper, table 1; the
release says 200 steps, eta 0).
"""

from configs import common, first_stages


def get_config(arg: str = ""):
    config = common.diffusion()
    config.data.update(dict(source="folder", size_px=256))
    config.first_stage.network = first_stages.network("vq_f4")
    config.optimizer.learning_rate = 9.6e-5
    config.train.num_steps = 410_000
    config.sample.update(dict(steps=200))
    return common.finish(config, arg)
