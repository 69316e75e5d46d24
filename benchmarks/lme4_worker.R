# A process that fits lme4 models on request, so that its fits can be interleaved with those of other packages.
# Reads lines from standard input:
#   load <tab> CSV <tab> FORMULA <tab> REML <tab> GROUP    answers "ready <version of lme4>"
#   fit                                                    answers "loglik <value>"
suppressPackageStartupMessages(library(lme4))
input <- file("stdin", open = "r")
data <- formula <- reml <- NULL
while (length(line <- readLines(input, n = 1)) > 0) {
  parts <- strsplit(line, "\t", fixed = TRUE)[[1]]
  if (parts[1] == "load") {
    data <- read.csv(parts[2])
    data[[parts[5]]] <- factor(data[[parts[5]]])
    formula <- as.formula(parts[3])
    reml <- parts[4] == "TRUE"
    cat("ready", as.character(packageVersion("lme4")), "\n")
  } else {
    fit <- suppressWarnings(suppressMessages(lmer(formula, data, REML = reml)))
    cat("loglik", format(as.numeric(logLik(fit)), digits = 17), "\n")
  }
  flush(stdout())
}
