#!/usr/bin/env bash
# From a model or a run folder to a verdict and its reports: what action.yml runs, and any other CI system can.
#
#   FAQ_RUN            the run folder (default: faq-run)
#   FAQ_MODEL          quantize this model first; empty: FAQ_RUN holds a quantized net already
#   FAQ_DATA           images, for quantize; for eval too, where they lie elsewhere than when the run was made
#   FAQ_QUANTIZE_ARGS  more arguments of quantize, split at spaces
#   FAQ_BUILD_ARGS     arguments of build (default: --runtime onnxruntime)
#   FAQ_GATES          a gate file
#   FAQ_BASELINE       a report.json to compare with
#   FAQ_EVAL_ARGS      more arguments of eval, split at spaces
#   FAQ_REPORTS        folder for the reports (default: faq-report)
#
# The exit code is eval's: 0 passed, 1 a gate failed, 2 bad input, 3 this machine can't do it.
set -euo pipefail

run=${FAQ_RUN:-faq-run}
reports=${FAQ_REPORTS:-faq-report}
read -r -a quantize_args <<<"${FAQ_QUANTIZE_ARGS:-}"
read -r -a build_args <<<"${FAQ_BUILD_ARGS:---runtime onnxruntime}"
read -r -a eval_args <<<"${FAQ_EVAL_ARGS:-}"
mkdir -p "$reports"
rm -f "$reports"/{report.json,report.html,predictions.csv,junit.xml,summary.md,lint.sarif}

judge() {
    if [[ -n "${FAQ_MODEL:-}" ]]; then
        faq-deploy quantize "$FAQ_MODEL" ${FAQ_DATA:+--data "$FAQ_DATA"} -o "$run" "${quantize_args[@]}" || return
    elif [[ -n "${FAQ_DATA:-}" ]]; then
        eval_args+=(--data "$FAQ_DATA")
    fi
    if [[ -n "${FAQ_MODEL:-}" || ! -f "$run/model.onnx" ]]; then
        faq-deploy export "$run" || return
    fi
    faq-deploy build "$run" "${build_args[@]}" || return
    # findings for the code host; what must not be is a gate of eval
    faq-deploy lint "$run/model.onnx" --format sarif >"$reports/lint.sarif" || true
    if [[ -n "${FAQ_GATES:-}" ]]; then eval_args+=(--gates "$FAQ_GATES"); fi
    if [[ -n "${FAQ_BASELINE:-}" ]]; then eval_args+=(--baseline "$FAQ_BASELINE"); fi
    faq-deploy eval "$run" --junit "$reports/junit.xml" --markdown "$reports/summary.md" "${eval_args[@]}" || return
}

code=0
judge || code=$?

# a report that an earlier eval left is not this one's
if [[ -f "$reports/junit.xml" ]]; then
    cp "$run"/{report.json,report.html,predictions.csv} "$reports"/
fi
if [[ -n "${GITHUB_STEP_SUMMARY:-}" && -f "$reports/summary.md" ]]; then
    cat "$reports/summary.md" >>"$GITHUB_STEP_SUMMARY"
fi
if [[ -n "${GITHUB_OUTPUT:-}" ]]; then
    printf 'exit-code=%s\nreports=%s\n' "$code" "$reports" >>"$GITHUB_OUTPUT"
fi
exit "$code"
