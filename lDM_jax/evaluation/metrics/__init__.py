"""Figures of merit: functions of arrays, in f64 on the host. In reading order:

statistics, frechet         streamed moments; FID, sFID, FD
inception_score, kernels    IS; KID and CMMD
manifolds                   precision, recall, density, coverage
bootstrap                   the interval of every figure
resize                      how pictures reach a feature network
reconstruction              PSNR, SSIM, LPIPS
recognition, objects        does a picture show what was asked for?

Networks and files are `lDM_jax.evaluation`'s affair.
"""
