# A static binary in an empty image. Builds with BuildKit and with the classic builder alike, so no cache mounts: the layer
# of dependencies below is the cache.
#
#   docker build -t ndserve .                    the server with the models of this repository
#   docker build -t ndserve --target server .    the server alone; mount a model folder at /models

# Any image with a Rust toolchain, a C compiler and its static C library.
ARG BUILD_IMAGE=rust:1-bookworm
FROM ${BUILD_IMAGE} AS build
WORKDIR /build

# First what changes rarely: the dependencies, compiled against an empty program. Targets that the image does not hold (tests,
# benches, examples) are taken out of the manifest, since cargo wants the files of every target that it names.
COPY Cargo.toml Cargo.lock build.rs ./
COPY proto proto
COPY scripts/static-build.sh scripts/
RUN awk '/^\[/ { skip = /^\[\[(bench|test|example)\]\]/ } !skip' Cargo.toml > Cargo.slim && mv Cargo.slim Cargo.toml \
    && mkdir src && echo 'fn main() {}' > src/main.rs && touch src/lib.rs \
    && scripts/static-build.sh > /dev/null && rm -r src

COPY src src
# A copied file keeps its own, older time; cargo would take the empty program for newer and keep it.
RUN touch src/main.rs src/lib.rs && cp "$(scripts/static-build.sh)" /ndserve

FROM scratch AS server
COPY --from=build /ndserve /ndserve
# By number: an empty image has no names, and Kubernetes' runAsNonRoot can only check a number.
USER 65532:65532
# In a container the loopback address would reach nobody.
ENV NDSERVE_LISTEN=0.0.0.0:8080 NDSERVE_GRPC_LISTEN=0.0.0.0:9000 NDSERVE_MODELS=/models
EXPOSE 8080 9000
STOPSIGNAL SIGTERM
# The binary asks itself: there is no shell and no curl here.
HEALTHCHECK --interval=5s --timeout=4s --start-period=30s --retries=3 CMD ["/ndserve", "healthcheck"]
ENTRYPOINT ["/ndserve"]
CMD ["serve"]
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ndserve" \
      org.opencontainers.image.description="A model server for CPUs: loads ONNX models at run time and answers batched predictions over HTTP" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

FROM server
COPY models /models
