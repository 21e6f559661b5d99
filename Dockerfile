# The README's commands in Debian 13, for Windows and for macOS on Arm, where MXNet 1.9.1 has no wheel:
#   docker build -t noisin . && docker run --rm -it noisin
FROM debian:trixie-slim
RUN apt-get update && apt-get install -y git make gcc python3-dev python3-venv
WORKDIR /noisin
COPY . .
RUN make venv
CMD ["make", "demo"]
