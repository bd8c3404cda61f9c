"""Errors of the project.

`ItemFailed` is the failure of one item: it goes on record, and the others go on. `RunStopped` ends a run and tells
people what to do. The others have callers that know them. Everything else that is raised is a fault of the program.

Each stands below its base class, beside the module that defines it:

    DownloadCancelled
        RejectedBySite              tasks.curation.fetch
        Stopped                     medgen.web.failures
    Exception
        HostBusy                    medgen.web.rate_limits
        IndexDamaged                models.duplicates.index
        ItemFailed                  medgen.errors
            ArtifactLost            medgen.store
            InferenceDied           medgen.inference
            SourceUnreadable        medgen.errors
            StoreUnavailable        medgen.store
        TooNew                      medgen.migrations
    LookupError
        NotIndexed                  tasks.curation.clip_search
        NothingToSample             apps.judge.sample
        Unknown                     apps.history
    RequestError
        Refused                     medgen.web.failures
    RuntimeError
        CaptionUnavailable          models.captioning.captioner
            MllmJudgeUnusable       models.metrics.mllm_judge
        CatalogUnreachable          medgen.catalog
        ModelUnavailable            models
            NotTextToVideo          models.generation.video_generator
            OptionUnavailable       models.generation.video_generator
        NotTakenDown                apps.takedown
        OutOfMemory                 models.generation.video_generator
        RunStopped                  medgen.errors
            CannotAugment           tasks.augmentation.labelled_videos
            CannotSign              medgen.content_credentials
            CheckpointNotWritten    models.training.checkpoint
            DatabaseUnusable        medgen.postgres_programs
            DeploymentRefused       apps.deployments
            DiscoveryFailed         flows.discover
            FunnelDeparted          tasks.curation.funnel_guard
            HomeUnusable            medgen.home
            ImportFailed            flows.import_release
            KeyUnusable             apps.evidence.signature
            NoPlan                  tasks.operations.plan
            NoSuchDevice            medgen.devices
            NotOfTheInstallation    medgen.installation
            NothingToTrainOn        models.training.samples
            PackWrong               apps.evidence.archive
            PeopleUnusable          apps.audit.people
            PreflightFailed         models.training.job
            RecordsDamaged          flows.verify
            RefreshFailed           flows.refresh
            ServerDidNotStart       apps.prefect_server
            SignatureWrong          apps.evidence.signature
            TermsUnusable           medgen.source_terms
            TrainingEnded           tasks.training.process
            TrainingStopped         models.training.errors
                OutOfMemory         models.training.errors
            Unwell                  flows.doctor
            WrongCheckpoint         models.training.checkpoint
        ShardFailed                 medgen.shard
        SpeechUnavailable           models.captioning.speech
        TooSlow                     apps.audit.reading
    ValueError
        BadManifest                 apps.judge.labels
        BadProfile                  tasks.curation.profile
        BadSample                   models.training.samples
        CannotCompare               models.classifiers.augmentation
        CaptionRejected             models.captioning.captioner
        TooShort                    models.metrics.suite
"""


class ItemFailed(Exception):
    """One item can't be processed.

    Args:
        reason: short machine-readable cause, for example ``http_404`` or ``no_video_stream``.
        message: what a person needs to know: the thing and why.
        transient: True when the same work may succeed later; False quarantines the item.
        later: True when nothing is wrong but its time has not come: not tried again within the run, and no sign
            of a fault in its shard. Such a failure is transient.
    """

    def __init__(self, reason: str, message: str, *, transient: bool = False, later: bool = False) -> None:
        super().__init__(reason, message, transient, later)
        self.reason = reason
        self.message = message
        self.transient = transient or later
        self.later = later

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.reason, self.message, self.transient, self.later))


def _rebuild(cls: type[ItemFailed], reason: str, message: str, transient: bool, later: bool) -> ItemFailed:
    return cls(reason, message, transient=transient, later=later)


class SourceUnreadable(ItemFailed):
    """A source as a whole can't be read."""


class RunStopped(RuntimeError):
    """A run can't go on. The message tells people what is wrong and what to do; what was done stays done."""
