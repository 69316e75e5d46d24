# A process that fits gls() and lme() of nlme on request, so that its fits can be interleaved with those of other packages.
# Reads lines from standard input:
#   load <tab> CSV <tab> FACTORS    answers "ready <version of nlme>"; FACTORS by commas
#   fit <tab> FIXED <tab> RANDOM <tab> FAMILY <tab> TIME <tab> GROUP <tab> VARIANCE <tab> METHOD <tab> HOW
#                                   answers "fitted <log-likelihood> <seconds>"; RANDOM and VARIANCE may be empty, METHOD is
#                                   ML or REML, HOW is default or tight: the settings that stop later
# Seconds are of gls() or lme() alone. What fails answers "error <message>".
suppressPackageStartupMessages(library(nlme))
input <- file("stdin", open = "r")
data <- NULL

load <- function(parts) {
  data <<- read.csv(parts[2])
  for (name in strsplit(parts[3], ",", fixed = TRUE)[[1]]) data[[name]] <<- factor(data[[name]])
  paste("ready", packageVersion("nlme"))
}

correlation_of <- function(family, form) {
  switch(family,
    independent = NULL, ar1 = corAR1(form = form), exponential = corExp(form = form), unstructured = corSymm(form = form),
    exchangeable = corCompSymm(form = form), arma11 = corARMA(form = form, p = 1, q = 1)
  )
}

settings <- function(random, how) {
  if (how == "default") return(if (random) lmeControl() else glsControl())
  if (random) return(lmeControl(maxIter = 500, msMaxIter = 1000, tolerance = 1e-10, msTol = 1e-12, niterEM = 50, msMaxEval = 5000))
  glsControl(maxIter = 500, msMaxIter = 1000, tolerance = 1e-10, msTol = 1e-12)
}

fit <- function(parts) {
  fixed <- as.formula(parts[2])
  random <- nzchar(parts[3])
  given <- list(fixed, data = data, method = parts[8], control = settings(random, parts[9]))
  given$correlation <- correlation_of(parts[4], as.formula(paste("~", parts[5], "|", parts[6])))
  if (nzchar(parts[7])) given$weights <- varIdent(form = as.formula(paste("~ 1 |", parts[7])))
  if (random) given$random <- as.formula(parts[3])
  began <- proc.time()[[3]]
  fitted <- suppressWarnings(do.call(if (random) "lme" else "gls", given))
  seconds <- proc.time()[[3]] - began
  paste(c("fitted", vapply(c(as.numeric(logLik(fitted)), seconds), format, "", digits = 17)), collapse = " ")
}

requests <- list(load = load, fit = fit)

while (length(line <- readLines(input, n = 1)) > 0) {
  parts <- strsplit(line, "\t", fixed = TRUE)[[1]]
  answer <- tryCatch(
    requests[[parts[1]]](parts),
    error = function(failure) paste("error", gsub("\n", " ", conditionMessage(failure)))
  )
  cat(answer, "\n")
  flush(stdout())
}
