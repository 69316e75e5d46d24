# A process that fits lme4 models on request, so that its fits can be interleaved with those of other packages.
# Reads lines from standard input:
#   load <tab> CSV <tab> FORMULA <tab> REML <tab> FACTORS    answers "ready <version of lme4>"; FACTORS by commas
#   fit                          answers "fitted <log-likelihood> <evaluations> <seconds> <MB>"
# Seconds are of lmer() alone; MB is the memory that the first fit added at its peak. What fails answers
# "error <message>".
suppressPackageStartupMessages(library(lme4))
input <- file("stdin", open = "r")
data <- formula <- reml <- before <- added <- NULL

megabytes <- function(field) {
  if (!file.exists("/proc/self/status")) return(NA)
  line <- grep(paste0("^", field, ":"), readLines("/proc/self/status"), value = TRUE)
  as.numeric(gsub("[^0-9]", "", line)) * 1024 / 1e6
}

forget_peak <- function() {
  if (file.exists("/proc/self/clear_refs")) cat("5", file = "/proc/self/clear_refs")
}

load <- function(parts) {
  data <<- read.csv(parts[2])
  for (name in strsplit(parts[5], ",", fixed = TRUE)[[1]]) data[[name]] <<- factor(data[[name]])
  formula <<- as.formula(parts[3])
  reml <<- parts[4] == "TRUE"
  invisible(gc())
  forget_peak()
  before <<- megabytes("VmRSS")
  added <<- NULL
  paste("ready", packageVersion("lme4"))
}

fit <- function() {
  began <- Sys.time()
  fitted <- suppressWarnings(suppressMessages(lmer(formula, data, REML = reml)))
  seconds <- as.numeric(difftime(Sys.time(), began, units = "secs"))
  if (is.null(added)) added <<- megabytes("VmHWM") - before
  numbers <- c(as.numeric(logLik(fitted)), fitted@optinfo$feval, seconds, added)
  paste(c("fitted", vapply(numbers, format, "", digits = 17)), collapse = " ")
}

while (length(line <- readLines(input, n = 1)) > 0) {
  parts <- strsplit(line, "\t", fixed = TRUE)[[1]]
  answer <- tryCatch(
    if (parts[1] == "load") load(parts) else fit(),
    error = function(failure) paste("error", gsub("\n", " ", conditionMessage(failure)))
  )
  cat(answer, "\n")
  flush(stdout())
}
