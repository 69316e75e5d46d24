* The classic multilevel workflow: pupils in classrooms in schools.
*
*     jaxmixed stata examples/education.do --data classrooms --plot schools.png
*
* runs it on simulated data, whose true values `jaxmixed datasets classrooms --describe` tells.

* How much do schools differ, given what their pupils bring?
mixed test_score ses parental_educ || school:
estat icc

* Does the slope of socio-economic status differ between schools?
mixed test_score ses parental_educ || school: ses, covariance(unstructured)

* Classrooms within schools, with a predictor of the classroom
mixed test_score ses teacher_exp || school: || classroom:
estat icc

* Is a school effect needed at all?
quietly mixed test_score ses parental_educ || school:
estimates store ri
quietly regress test_score ses parental_educ
estimates store ols
lrtest ri ols

* Ranks of the schools, with what is known of them
estimates restore ri
predict u_school, reffects
predict u_se, reses
egen pickone = tag(school)
sort u_school
generate rank = sum(pickone)
serrbar u_school u_se rank if pickone, scale(1.96) yline(0)
list school u_school u_se rank if pickone & (rank <= 3 | rank > 47), noobs
