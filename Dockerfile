# docker build -t her2d . && docker run -v $PWD/my_cifs:/her2d/my_cifs -v $PWD/results:/her2d/results her2d \
#     evaluate_external external.cif_dir=my_cifs external.name=mine
# With a GPU: docker build --build-arg TORCH=cuda, docker run --gpus all
FROM python:3.11-slim
ARG TORCH=cpu
ENV PIP_NO_CACHE_DIR=1
RUN apt-get update && apt-get install -y --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/her2d
COPY . .
RUN make install TORCH=$TORCH && .venv/bin/pip install --no-deps .
WORKDIR /her2d
ENTRYPOINT ["/opt/her2d/.venv/bin/her2d"]
