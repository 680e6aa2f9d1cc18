#!/usr/bin/env bash
# Torchvision's networks on CIFAR-10 (JPEG copies): a teacher, wider and deeper students of it, and their training goes on.
#   bash experiments/cifar10/torchvision.sh /path/to/cifar10 OUT resnet18 shufflenet vit mobilenet
# N2N: the command, if it is not n2n. Then: python experiments/cifar10/same_predictions.py OUT
set -euo pipefail
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
common=(data=imagefolder "data.root=$1" data.image_size=32 data.train_images=10000 "out=$2" workers=0
        optim=sgd optim.lr=0.03 training=default training.batch_size=64 training.evals_first_epoch=1
        training.checkpoint_every_epochs=9)  # so that a student's step 0 stays
out=$2
n2n() { echo "+ n2n $*" >&2; local t=$SECONDS; ${N2N:-command n2n} "$@" "${common[@]}"; echo "  took $((SECONDS - t)) s" >&2; }
run() { ls -d "$out"/$1; }  # the run folder of a pattern

resnet18() {
  n2n train teacher model=resnet18 epochs=3
  n2n grow --op wider model=resnet18 --factor 1.5 op.noise=0 epochs=1
  n2n grow --op deeper model=resnet34 --teacher "$(run 'resnet18-*/teacher-*')" epochs=1
  n2n grow --op wider model=resnet18 --factor 1.5 op.optimizer=carry op.noise=0 epochs=1
}
shufflenet() {
  local m=shufflenet_v2_x0_5
  n2n train teacher model=$m epochs=3
  n2n grow --op wider model=$m --factor 1.5 op.noise=0 epochs=1
  n2n grow --op deeper model=$m 'op.sites=["stage?.*.branch2.0"]' epochs=1
  n2n grow --op wider model=$m --factor 1.5 op.optimizer=carry op.noise=0 epochs=1
  n2n grow --op deeper model=$m 'op.sites=["stage?.*.branch2.0"]' op.optimizer=carry epochs=1
  n2n grow --op deeper model=$m 'op.sites=["stage?.*.branch2.0"]' --teacher "$(run "$m-*/wider-factor1.5*-epochs1-teacher3-seed0" | grep -v carry)" epochs=1
}
mobilenet() {
  n2n train teacher model=mobilenet_v2 epochs=2
  n2n grow --op wider model=mobilenet_v2 --factor 1.5 op.noise=0 epochs=1
  n2n grow --op deeper model=mobilenet_v2 epochs=1
}
vit() {
  local m=(model=torchvision.models:VisionTransformer model.kwargs.image_size=32 model.kwargs.patch_size=4
           model.kwargs.num_heads=4 model.kwargs.hidden_dim=64 model.kwargs.mlp_dim=256)
  n2n train teacher "${m[@]}" model.kwargs.num_layers=4 epochs=2
  n2n grow --op wider "${m[@]}" model.kwargs.num_layers=4 --factor 1.5 op.noise=0 epochs=1
  n2n grow --op deeper "${m[@]}" model.kwargs.num_layers=6 --teacher "$(run '*VisionTransformer*/teacher-*')" epochs=1
}
for network in "${@:3}"; do "$network"; done
