"""Figures of merit: functions of arrays, in f64 on the host. In reading order:

statistics, frechet         streamed moments; FID, sFID, FD
inception_score, kernel_distances    IS; KID and CMMD
manifolds                   precision, recall, density, coverage
bootstrap                   the interval of every figure
resize                      resizing to the input of a feature network
reconstruction              PSNR, SSIM, LPIPS
recognition, objects        whether images show their conditions

Networks and files are in `lDM_jax.evaluation`. A metric's `measure(comparison, report)`
adds its figures; `lDM_jax.evaluation.figures` lists them.
"""
