"""Which metrics of videos make up the paper's total, and which say how much and not how well."""

# The paper's five terms, by the beginning of a metric's name, all from 0 to 1 here.
TERMS = (
    "imaging_quality",
    "subject_consistency",
    "background_consistency",
    "motion_smoothness",
    "medical_accuracy",
)
TERM_MEAN = "mean_of_terms"
# Say how much or how the measure came about, not how well: never part of a comparison of quality.
NEUTRAL = ("dynamic_degree", "motion_speed", "medical_error_level")
