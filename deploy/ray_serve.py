"""newsdesk's server on a Ray cluster: replicas on several machines behind one address, all its protocols.

    pip install 'newsdesk[serve]' 'ray[serve]'            # on every machine, the same versions
    NEWSDESK_MODELS=/shared/models serve run --working-dir deploy ray_serve:app

Each replica opens the models of a folder that all machines see, and takes the cores that Ray gives it. Ray
starts lost replicas again, and more of them while requests wait.
"""

from __future__ import annotations

import os

from fastapi import FastAPI
from ray import serve

from newsdesk.serving.server import new_app, new_service
from newsdesk.serving.settings import Settings

CORES = int(os.environ.get("NEWSDESK_CORES", "2"))
MODELS = os.environ.get("NEWSDESK_MODELS", "/srv/newsdesk")


def new_replica() -> FastAPI:
    """The application of one replica, in the process that Ray gave it."""
    settings = Settings(host="0.0.0.0", threads=CORES, watch=60.0)  # Ray's proxies ask, from other machines
    return new_app(new_service([MODELS], settings), [MODELS])


@serve.deployment(
    ray_actor_options={"num_cpus": CORES},
    max_ongoing_requests=512,  # they wait in newsdesk, which makes batches of them
    autoscaling_config={"min_replicas": 1, "max_replicas": 8, "target_ongoing_requests": 64},
    health_check_period_s=5,
    graceful_shutdown_timeout_s=30,
)
@serve.ingress(new_replica)
class Newsdesk:
    """A replica: all that it does is the application's."""


app = Newsdesk.bind()
