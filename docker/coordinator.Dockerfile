# syntax=docker/dockerfile:1
# A coordinator. Build from the repository's root: docker build -f docker/coordinator.Dockerfile .
FROM python:3.12-bookworm AS build
COPY . /src
RUN /src/docker/build-wheel.sh /wheels
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN TORCH_INDEX="$TORCH_INDEX" /src/docker/install.sh /opt/swarm-peer /wheels

FROM python:3.12-slim-bookworm
COPY --from=build /opt/swarm-peer /opt/swarm-peer
COPY docker/coordinator.sh /usr/local/bin/
COPY docker/folders.sh /opt/folders.sh
RUN /opt/folders.sh ""
ENV PATH=/opt/swarm-peer/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    SWARM_PEER_HOME=/data/cache \
    SWARM_PEER_STATE=/data/state \
    SWARM_SHARED=/shared \
    HOME=/data
USER 10001
VOLUME ["/data"]
EXPOSE 4001 8080
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s \
    CMD ["python", "-m", "swarm_peer.swarm.api.health", "127.0.0.1:50051"]
ENTRYPOINT ["/usr/local/bin/coordinator.sh"]
CMD ["/run/swarm/run.toml"]
