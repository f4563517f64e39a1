/**
 * What travels between the page and the API, for type checkers alone; no module loads this one.
 *
 * @typedef {number | "inf"} Dimension
 *
 * @typedef {object} Model
 * @property {string} name
 * @property {string} dataset
 * @property {Dimension} D
 * @property {number} resolution
 * @property {number} channels
 * @property {string[]} classes
 * @property {number} default_steps
 * @property {number} max_steps
 * @property {number} sigma_min
 * @property {number} sigma_max
 * @property {string[]} solvers
 * @property {boolean} is_guidable
 * @property {Record<string, string>} guides
 *
 * @typedef {Record<string, any>} SampleRequest The body of `POST /v1/samples`.
 *
 * @typedef {object} Progress
 * @property {number} evaluations_done
 * @property {number} evaluations_total
 * @property {number} images_done
 * @property {number} images_total
 *
 * @typedef {{p50: number, p90: number}} Eta Seconds from now to the end.
 *
 * @typedef {object} Latency
 * @property {number} queue_seconds
 * @property {number} batch_wait_seconds
 * @property {number} sampling_seconds
 * @property {number} encoding_seconds
 * @property {number} total_seconds
 * @property {number} evaluations
 * @property {number} batch_images
 * @property {number} images_per_second
 *
 * @typedef {object} Job
 * @property {string} id
 * @property {"queued" | "running" | "succeeded" | "failed" | "canceled" | "expired"} status
 * @property {Record<string, any>} request
 * @property {string} created_at
 * @property {string | null} started_at
 * @property {string | null} finished_at
 * @property {number} attempts
 * @property {number | null} queue_position
 * @property {string | null} waits_for
 * @property {Eta | null} [eta_seconds]
 * @property {Progress} progress
 * @property {Latency | null} latency
 * @property {{checkpoint_sha256: string, precision: string, arithmetic: string | null}} model
 * @property {number[]} seeds
 * @property {number[] | null} labels
 * @property {{code: string, detail: string} | null} error
 * @property {Record<string, string>} links
 *
 * @typedef {object} News How far a job is.
 * @property {string} [job]
 * @property {Job["status"]} status
 * @property {number | null} queue_position
 * @property {Progress} progress
 * @property {Eta | null} [eta_seconds]
 *
 * @typedef {object} Preview
 * @property {number} evaluation
 * @property {number} evaluations
 * @property {number} sigma
 * @property {string} png In base64.
 *
 * @typedef {{field: string, message: string}} FieldError
 *
 * @typedef {object} ProblemDocument
 * @property {string} title
 * @property {number} status
 * @property {string} detail
 * @property {string} code
 * @property {FieldError[]} errors
 *
 * @typedef {object} Estimate
 * @property {number} images
 * @property {number} evaluations
 * @property {number | null} wait_seconds
 * @property {number | null} run_seconds
 * @property {Eta | null} [eta_seconds]
 * @property {ProblemDocument | null} refusal
 *
 * @typedef {object} Worker
 * @property {string} name
 * @property {"idle" | "busy" | "draining" | "lost"} state
 * @property {string} device
 * @property {number} evaluations_per_second
 * @property {string[]} models
 * @property {string[]} loaded
 *
 * @typedef {object} Queued
 * @property {string} model
 * @property {number} queued_jobs
 * @property {number} queued_images
 * @property {number} queued_evaluations
 * @property {number} oldest_age_seconds
 * @property {number} running_jobs
 *
 * @typedef {{workers: Worker[], models: Queued[], evaluations: number}} ServiceStatus
 */

export {};
