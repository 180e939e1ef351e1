"""
A service that aligns one picture at a time
===========================================

A picture goes in; its pose, how sure it is and the canonical picture come back::

    pip install 'sk_avae[plot,serve]'
    MODEL=letters.safetensors OMP_NUM_THREADS=1 uvicorn --factory serve:create_app
    curl --data-binary @letter.png http://127.0.0.1:8000/align

The model should be fitted on bytes, as pictures have them. The service is written for a trusted network. Elsewhere put
a server with passwords and certificates in front of it.
"""

import base64
import io
import os

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from PIL import Image, ImageOps

import sk_avae

LARGEST_BODY = 10_000_000  # bytes


def read(body, n_channels):
    """Return the picture in a request's body, in colour if the model is."""
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(body)))
        return np.asarray(image.convert("L" if n_channels == 1 else "RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"The body is no picture that can be read: {error}") from error


def as_png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def answer(avae, body):
    """Return the pose of a picture, how sure it is, and the canonical picture."""
    picture = read(body, n_channels=(*avae.image_shape_, 1)[2])
    result = avae.align([picture])  # a list: a picture of another size is scaled to the model's
    pose = result.to_frame().iloc[0]
    edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])  # what comes in at the corners
    canonical = avae.warp(picture[None], result, background=float(np.median(edge)))[0]
    return {
        "pose": {name: float(value) for name, value in pose.items()},
        "sure": not bool(result.reject(0.8)[0]),
        "canonical_png": as_png(canonical),
    }


def create_app(model=None):
    """Make the application around a saved aligner: a path, or the one that the variable MODEL names."""
    avae = sk_avae.load(model or os.environ["MODEL"])
    app = FastAPI(title="sk_avae", version=sk_avae.__version__)

    @app.get("/health")
    def health():
        report = avae.alignment_report_  # None of a model that was fitted on few images
        return {"image_shape": avae.image_shape_, "right_poses_in_fit": report and report.share_right}

    @app.post("/align")
    async def align(request: Request):
        body = await request.body()
        if len(body) > LARGEST_BODY:
            raise HTTPException(413, f"The picture has more than {LARGEST_BODY} bytes.")
        try:
            return await run_in_threadpool(answer, avae, body)  # a fitted aligner may be used by many threads
        except ValueError as error:
            raise HTTPException(422, str(error)) from error

    return app
