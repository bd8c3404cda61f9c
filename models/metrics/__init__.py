"""How good is a generated video? Metrics of one video each; a system's value is the mean over its videos.

The definitions are those of VBench (Huang et al. 2024, arXiv 2311.17982; github.com/Vchitect/VBench), its backbones
by name. Where a packaged backbone stands in, the metric is another one and is called so: a metric's name carries its
backbone in brackets, as in `subject_consistency[facebook/dino-vitb16]` and `subject_consistency[mobilenet_v2]`. Values
of metrics with different names must not be compared.
"""
