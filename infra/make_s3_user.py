"""Makes the bucket of the store, and the user that the worker has in place of MinIO's root. Safe to repeat.

Run once at each start, with MinIO's root in MINIO_ROOT_USER and MINIO_ROOT_PASSWORD: the worker, which decodes files of
strangers, reads and writes objects of its bucket and can do nothing else.
"""

import os
from typing import Any
from urllib.parse import urlsplit

from minio import Minio
from minio.credentials import StaticProvider
from minio.minioadmin import MinioAdmin

POLICY = "medgen-worker"


def make_user(endpoint: str, root: tuple[str, str], user: tuple[str, str], bucket: str) -> None:
    """Makes bucket, policy and user.

    Args:
        endpoint: http(s)://host:port.
        root, user: access key and secret key.

    Raises:
        ValueError: the user would be root.
        MinioAdminException, S3Error: MinIO refuses.
    """
    if user[0] == root[0]:
        raise ValueError("WORKER_S3_ACCESS_KEY must be another name than MINIO_ROOT_USER")
    url = urlsplit(endpoint)
    secure = url.scheme == "https"
    client = Minio(url.netloc, *root, secure=secure)
    if not client.bucket_exists(bucket):
        client.make_bucket(bucket)
    admin = MinioAdmin(endpoint=url.netloc, credentials=StaticProvider(*root), secure=secure)
    admin.policy_add(POLICY, policy=policy(bucket))
    admin.user_add(*user)  # a known one gets its secret anew
    admin.policy_set(POLICY, user=user[0])


def policy(bucket: str) -> dict[str, Any]:
    """What the store does with its bucket, as an IAM policy."""
    of_bucket = ["s3:GetBucketLocation", "s3:ListBucket", "s3:ListBucketMultipartUploads"]
    of_objects = [
        "s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts",
    ]  # fmt: skip
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": of_bucket, "Resource": [f"arn:aws:s3:::{bucket}"]},
            {"Effect": "Allow", "Action": of_objects, "Resource": [f"arn:aws:s3:::{bucket}/*"]},
        ],
    }


if __name__ == "__main__":
    make_user(
        os.environ["S3_ENDPOINT"],
        (os.environ["MINIO_ROOT_USER"], os.environ["MINIO_ROOT_PASSWORD"]),
        (os.environ["WORKER_S3_ACCESS_KEY"], os.environ["WORKER_S3_SECRET_KEY"]),
        os.environ["S3_BUCKET"],
    )
