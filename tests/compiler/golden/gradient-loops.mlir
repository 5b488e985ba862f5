module {
  func.func @mx_sum(%arg0: memref<32xf32>, %arg1: memref<8xf32>, %arg2: memref<32xf32>, %arg3: memref<1xf32>) {
    %c1 = arith.constant 1 : index
    %c0 = arith.constant 0 : index
    scf.parallel (%arg4) = (%c0) to (%c1) step (%c1) {
      %c4 = arith.constant 4 : index
      %cst = arith.constant 0.000000e+00 : f32
      %0 = scf.for %arg5 = %c0 to %c4 step %c1 iter_args(%arg6 = %cst) -> (f32) {
        %c8 = arith.constant 8 : index
        %cst_0 = arith.constant 0.000000e+00 : f32
        %1 = scf.parallel (%arg7) = (%c0) to (%c8) step (%c1) init (%cst_0) -> f32 {
          %3 = arith.muli %arg5, %c8 : index
          %4 = arith.addi %3, %arg7 : index
          %5 = memref.load %arg0[%4] : memref<32xf32>
          %6 = memref.load %arg1[%arg7] : memref<8xf32>
          %7 = arith.mulf %5, %6 : f32
          %8 = math.tanh %7 : f32
          memref.store %8, %arg2[%4] : memref<32xf32>
          scf.reduce(%8 : f32) {
          ^bb0(%arg8: f32, %arg9: f32):
            %9 = arith.addf %arg8, %arg9 fastmath<reassoc> : f32
            scf.reduce.return %9 : f32
          }
        }
        %2 = arith.addf %arg6, %1 fastmath<reassoc> : f32
        scf.yield %2 : f32
      }
      memref.store %0, %arg3[%c0] : memref<1xf32>
      scf.for %arg5 = %c0 to %c4 step %c1 {
        %c8 = arith.constant 8 : index
        scf.parallel (%arg6) = (%c0) to (%c8) step (%c1) {
          %1 = arith.muli %arg5, %c8 : index
          %2 = arith.addi %1, %arg6 : index
          %3 = memref.load %arg2[%2] : memref<32xf32>
          scf.reduce 
        }
      }
      scf.reduce 
    }
    return
  }
  func.func @mx_sum_2(%arg0: memref<32xf32>, %arg1: memref<32xf32>, %arg2: memref<8xf32>) {
    %alloca = memref.alloca() {alignment = 64 : i64} : memref<8xf32>
    %c1 = arith.constant 1 : index
    %c0 = arith.constant 0 : index
    scf.parallel (%arg3) = (%c0) to (%c1) step (%c1) {
      %c8 = arith.constant 8 : index
      %0 = arith.muli %arg3, %c8 : index
      %1 = arith.subi %c8, %0 : index
      %2 = arith.minui %1, %c8 : index
      scf.parallel (%arg4) = (%c0) to (%2) step (%c1) {
        %3 = arith.addi %0, %arg4 : index
        %cst = arith.constant 0.000000e+00 : f32
        memref.store %cst, %alloca[%arg4] : memref<8xf32>
        scf.reduce 
      }
      scf.for %arg4 = %c0 to %c1 step %c1 {
        %c4 = arith.constant 4 : index
        %3 = arith.muli %arg4, %c4 : index
        %4 = arith.muli %arg4, %c4 : index
        %5 = arith.addi %4, %c1 : index
        %6 = arith.muli %arg4, %c4 : index
        %c2 = arith.constant 2 : index
        %7 = arith.addi %6, %c2 : index
        %8 = arith.muli %arg4, %c4 : index
        %c3 = arith.constant 3 : index
        %9 = arith.addi %8, %c3 : index
        scf.parallel (%arg5) = (%c0) to (%2) step (%c1) {
          %10 = arith.addi %0, %arg5 : index
          %cst = arith.constant 1.000000e+00 : f32
          %11 = arith.muli %3, %c8 : index
          %12 = arith.addi %11, %10 : index
          %13 = memref.load %arg0[%12] : memref<32xf32>
          %14 = arith.mulf %13, %13 : f32
          %15 = arith.subf %cst, %14 : f32
          %16 = memref.load %arg1[%12] : memref<32xf32>
          %17 = arith.mulf %15, %16 : f32
          %cst_0 = arith.constant 1.000000e+00 : f32
          %18 = arith.muli %5, %c8 : index
          %19 = arith.addi %18, %10 : index
          %20 = memref.load %arg0[%19] : memref<32xf32>
          %21 = arith.mulf %20, %20 : f32
          %22 = arith.subf %cst_0, %21 : f32
          %23 = memref.load %arg1[%19] : memref<32xf32>
          %24 = arith.mulf %22, %23 : f32
          %25 = arith.addf %17, %24 fastmath<reassoc> : f32
          %cst_1 = arith.constant 1.000000e+00 : f32
          %26 = arith.muli %7, %c8 : index
          %27 = arith.addi %26, %10 : index
          %28 = memref.load %arg0[%27] : memref<32xf32>
          %29 = arith.mulf %28, %28 : f32
          %30 = arith.subf %cst_1, %29 : f32
          %31 = memref.load %arg1[%27] : memref<32xf32>
          %32 = arith.mulf %30, %31 : f32
          %33 = arith.addf %25, %32 fastmath<reassoc> : f32
          %cst_2 = arith.constant 1.000000e+00 : f32
          %34 = arith.muli %9, %c8 : index
          %35 = arith.addi %34, %10 : index
          %36 = memref.load %arg0[%35] : memref<32xf32>
          %37 = arith.mulf %36, %36 : f32
          %38 = arith.subf %cst_2, %37 : f32
          %39 = memref.load %arg1[%35] : memref<32xf32>
          %40 = arith.mulf %38, %39 : f32
          %41 = arith.addf %33, %40 fastmath<reassoc> : f32
          %42 = memref.load %alloca[%arg5] : memref<8xf32>
          %43 = arith.addf %42, %41 fastmath<reassoc> : f32
          memref.store %43, %alloca[%arg5] : memref<8xf32>
          scf.reduce 
        }
      }
      scf.parallel (%arg4) = (%c0) to (%2) step (%c1) {
        %3 = arith.addi %0, %arg4 : index
        %4 = memref.load %alloca[%arg4] : memref<8xf32>
        memref.store %4, %arg2[%3] : memref<8xf32>
        scf.reduce 
      }
      scf.reduce 
    }
    return
  }
}
