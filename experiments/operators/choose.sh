#!/usr/bin/env bash
# The choices behind the study: rate, size of the noise, the rate after growing. On 5,000 training images held apart, and on
# seeds that the study does not use.
#   bash experiments/operators/choose.sh /path/to/cifar10 OUT
set -euo pipefail
all=(data=imagefolder "data.root=$1" data.image_size=32 data.holdout=5000 model=inception_bn_tiny optim=sgd
     training=default training.batch_size=128 progress=false "out=$2")
for lr in 0.1 0.2 0.4; do n2n train student "${all[@]}" seed=10 epochs=4 optim.lr=$lr; done
for seed in 10 11; do
    one=("${all[@]}" optim.lr=0.2 seed=$seed)
    n2n train teacher "${one[@]}" epochs=8
    teacher=$(dirname "$(grep -l '"seed": '"$seed" "$2"/*/teacher-epochs8-seed"$seed"/run.json)")
    grow() { n2n grow --op "$1" "${one[@]}" epochs=4 "teacher=$teacher" "${@:2}"; }
    for scale in 0.1 1; do for noise in 0.03 0.1 0.3 1.0; do grow wider op.noise=$noise lr_scale=$scale; done; done
    for scale in 0.1 0.3 1; do grow wider op.new=fresh lr_scale=$scale; done
    grow random_init
    grow continue lr_scale=1
    grow wider op.new=fresh lr_scale=1 training.ema_decay=null
    grow wider op.new=fresh lr_scale=1 op.optimizer=carry
    for scale in 0.3 0.5 1; do grow wider op.new=fresh lr_scale=$scale op.warmup_epochs=1; done
    grow wider op.new=fresh lr_scale=1 op.warmup_epochs=2
    grow wider op.new=fresh lr_scale=0.1 optim.schedule.name=constant
done
